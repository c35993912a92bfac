"""`dpm-edge serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dpm_edge.cli.options import PATH, engine_options

if TYPE_CHECKING:
    import threading

    from dpm_edge.gallery import Gallery
    from dpm_edge.runtime import Engine

INSTALL = "pip install 'dpm-edge[serve]'"
FINISH_SECONDS = 30.0
"""How long running requests may take once the server was told to end."""
MOST_PIXELS = 1 << 26
"""Of one picture. A PNG of a megabyte may hold a billion pixels of one colour, which fill the memory when decoded."""


@click.command("serve", short_help="Serve an engine and a gallery over HTTP.")
@click.option("--engine", type=PATH, required=True, help="The engine directory to serve.")
@click.option("--gallery", "place", help="A folder, made where there is none, a saved gallery, or a server's address.")
@click.option("--calibration", type=PATH, help="A file that `calibrate` wrote; else what the gallery keeps.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; one beyond this machine needs a token.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="Port; 0 takes a free one."
)
@click.option(
    "--token",
    default="",
    envvar="DPM_EDGE_TOKEN",
    help="Asked of every request; also from DPM_EDGE_TOKEN. Beyond this machine one is made if not given.",
)
@click.option(
    "--largest", type=click.FloatRange(0.001), default=16.0, show_default=True, help="Megabytes of one request."
)
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), help="Requests a second of one client; no limit if not given."
)
@click.option(
    "--queue", type=click.IntRange(1), default=256, show_default=True, help="Crops that may be under way at once."
)
@click.option(
    "--proxy",
    is_flag=True,
    help="A proxy of this machine names its clients in X-Forwarded-For; --rate tells them apart.",
)
@click.option("--add/--no-add", default=True, show_default=True, help="Let clients add rows to the gallery.")
@engine_options
def command(
    engine: Path,
    place: str | None,
    calibration: Path | None,
    host: str,
    port: int,
    token: str,
    largest: float,
    rate: float | None,
    queue: int,
    proxy: bool,
    add: bool,
    device: str | None,
    threads: int | None,
) -> None:
    """Serve ENGINE, and a gallery of its model, over HTTP: embed, search, who and add, below /api/v1.

    Requests that come at once share batches. /api/v1/openapi.json describes the API, /metrics is for Prometheus. Stop
    it with Ctrl-C or SIGTERM: running requests are answered first. docs/serve.md has examples.

    \b
    Example:
      dpm-edge serve --engine demo-out/engine --gallery seen
    """
    import contextlib
    import logging
    import os

    from dpm_edge.errors import MissingLibrary
    from dpm_edge.gallery.calibration import Calibration
    from dpm_edge.progress import say
    from dpm_edge.runtime import Engine
    from dpm_edge.web.listening import ServingThread, bind, is_loopback, needed_token, shown_address

    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))  # read when OpenCV is loaded
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # broken forms of clients are theirs to know
    try:
        import python_multipart  # noqa: F401  Starlette reads forms with it
        import uvicorn  # noqa: F401

        from dpm_edge.serve.app import ServeApp
        from dpm_edge.serve.limits import ServeLimits
    except ImportError as error:
        raise MissingLibrary(error.name or "fastapi", "dpm-edge serve", INSTALL) from error

    limits = ServeLimits(
        body_bytes=int(largest * 1_000_000), rate=rate, queue=queue, crops=min(ServeLimits.crops, queue)
    )
    known = Calibration.load(calibration) if calibration else None
    needed = needed_token(host, token)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(bind(host, port, "the server"))
        opened = stack.enter_context(Engine.load(engine, device=device, threads=threads))
        gallery = None if place is None else stack.enter_context(_open_gallery(place, opened, add=add))
        app = ServeApp(
            opened, gallery, add=add, calibration=known, token=needed, loopback=is_loopback(host), limits=limits
        )
        stack.callback(app.close)
        ended = ended_by_sigterm()
        stack.enter_context(
            ServingThread(
                app,
                listening,
                what="the server",
                finish_seconds=FINISH_SECONDS,
                server_header=False,
                proxy_headers=proxy,
            )
        )
        if gallery is not None:
            say(f"gallery {place}: {len(gallery)} rows{'' if add and not gallery.store.read_only else ', none added'}")
        say(f"serving {opened.spec.name} at {shown_address(host, listening.getsockname()[1])}api/v1")
        if needed and not token:
            say(f"token: {needed}")
        ended.wait()
        say("ending: running requests are answered first")


def ended_by_sigterm() -> threading.Event:
    """An event that is set when a service manager asks to end (SIGTERM)."""
    import contextlib
    import signal
    import threading

    ended = threading.Event()
    with contextlib.suppress(ValueError):  # not the main thread: whoever runs us there stops us another way
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
    return ended


def _open_gallery(place: str, engine: Engine, *, add: bool) -> Gallery:
    """The gallery at a place; what cannot be added to is said."""
    from dpm_edge.cli.match import open_to_read
    from dpm_edge.gallery import Gallery
    from dpm_edge.progress import say

    if not add:
        gallery = open_to_read(place)
    elif "://" not in place and Path(place).is_file():
        gallery = Gallery.open(place, read_only=True)  # rows would be added to memory, and lost
        say(f"{place} is a saved gallery, to which no rows are added. Give a folder: dpm-edge gallery create")
    else:
        gallery = Gallery.for_engine(engine, place)
    if gallery.store.read_only and add:
        say(f"rows are not added: {gallery.store.read_only}")
    return gallery
