"""The page of the camera application and its API. Needs the extra `watch`: starlette, uvicorn, websockets."""
