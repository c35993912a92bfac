"""Bodies that hold no picture: one sentence each."""

from __future__ import annotations

import cv2
import pytest

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra `serve`)")
pytest.importorskip("httpx", reason="httpx, which starlette's test client needs, is not installed")

from served import API, PEOPLE
from starlette.testclient import TestClient

TIFF = cv2.imencode(".tiff", PEOPLE[0])[1].tobytes()
NO_FILE = b'--x\r\nContent-Disposition: form-data; name="boxes"\r\n\r\n[]\r\n--x--\r\n'
JPEG = cv2.imencode(".jpg", PEOPLE[0])[1].tobytes()


@pytest.mark.parametrize("name", ["embed", "search", "who", "add"])
@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"", "image/jpeg", 400, "which is empty"),
        (JPEG[: len(JPEG) // 2], "image/jpeg", 400, "which ends too early"),
        (TIFF, "image/tiff", 400, "(JPEG, PNG, BMP or WebP)"),
        (b"GIF89a", "application/octet-stream", 400, "(JPEG, PNG, BMP or WebP)"),
        (b"\x89PNG and then nothing", "image/png", 400, "which is not a picture"),
        (JPEG, "application/x-www-form-urlencoded", 415, "Content-Type: image/jpeg"),
        (b"{}", "application/json", 415, "got 'application/json'"),
        (JPEG, "multipart/form-data", 400, "boundary"),
        (JPEG, "multipart/form-data; boundary=x", 400, "none that can be read"),
        (NO_FILE, "multipart/form-data; boundary=x", 400, "expected a file in the field pictures, got none"),
    ],
)
def test_a_body_without_a_picture_is_one_sentence(
    client: TestClient, name: str, body: bytes, kind: str, status: int, words: str
) -> None:
    answer = client.post(f"{API}/{name}", content=body, headers={"content-type": kind})
    assert answer.status_code == status and words in answer.json()["error"], answer.text


def test_text_in_the_field_of_files_is_refused(client: TestClient) -> None:
    answer = client.post(f"{API}/embed", files=[("x", ("a.png", b"", "image/png"))], data={"pictures": "a.png"})
    assert answer.status_code == 422 and "Files go to pictures" in answer.json()["error"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
def test_every_promised_format_is_read(client: TestClient, suffix: str) -> None:
    body = cv2.imencode(suffix, PEOPLE[0])[1].tobytes()
    assert client.post(f"{API}/embed", content=body).status_code == 200
