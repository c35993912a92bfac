"""`dpm-edge watch`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpm_edge.cli.options import PATH, as_json, quiet

if TYPE_CHECKING:
    from dpm_edge.runtime import Engine
    from dpm_edge.watch.site_config import Site
    from dpm_edge.watch.watch_site import WatchSite


@click.command("watch", short_help="Watch cameras: who came, who left, who came from A to B.")
@click.argument("sources", nargs=-1, required=True, metavar="SITE.toml|SOURCE…")
@click.option("--engine", type=PATH, help="An engine to use; one is built from the model that ships if not given.")
@click.option("--detector", type=PATH, help="Another project's detector (ONNX), or one that was built.")
@click.option("--detector-person", type=click.IntRange(0), help="Its class of a person, where its file does not tell.")
@click.option("--folder", type=PATH, help="Where store, gallery and engine are kept.  [default: watch]")
@click.option(
    "--camera",
    "cameras",
    multiple=True,
    metavar="NAME",
    help="Watch this camera of SITE.toml alone, or these: other programs with the same gallery watch the others.",
)
@click.option("--threads", type=click.IntRange(1), help="Cores for one call; the library decides if not given.")
@click.option("--once", is_flag=True, help="End when all files have ended, instead of keeping the page open.")
@click.option("--page/--no-page", default=True, show_default=True, help="Serve the page.")
@click.option("--host", help="Address of the page; one beyond this machine needs a token.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port of the page; 0 takes a free one.  [default: 8080]")
@as_json
@quiet
def command(
    sources: tuple[str, ...],
    engine: Path | None,
    detector: Path | None,
    detector_person: int | None,
    folder: Path | None,
    cameras: tuple[str, ...],
    threads: int | None,
    once: bool,
    page: bool,
    host: str | None,
    port: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Watch a site, described in SITE.toml, or the videos and cameras of SOURCES; print what happens.

    A source is a file, a folder, rtsp://…, http://… or the number of a USB camera. Events go to stdout, a sentence
    each, or a line of JSON with --json; and to the outputs of the site file. The page shows the cameras, the people and
    all events. Stop it with Ctrl-C. docs/watch.md explains the site file.

    \b
    Example:
      dpm-edge watch door.mp4 yard.mp4
      dpm-edge watch site.toml --no-page --json
      dpm-edge watch site.toml --camera door --folder door
    """
    import dataclasses
    import os

    from dpm_edge.errors import SiteError
    from dpm_edge.watch.site_config import part_of
    from dpm_edge.watch.site_file import read_site, site_of

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's own words name addresses; our states say it
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    tables = [one for one in sources if one.endswith(".toml")]
    if tables and len(sources) > 1:
        raise SiteError(f"expected one site file or several sources, got {len(sources)} with {tables[0]} among them")
    site = read_site(Path(tables[0])) if tables else site_of(sources, Path("watch"))
    if cameras:
        site = part_of(site, cameras)
    given: dict[str, Any] = {
        "engine": engine, "detector": detector, "detector_person": detector_person, "folder": folder, "host": host,
        "port": port,
    }  # fmt: skip
    site = dataclasses.replace(site, **{key: value for key, value in given.items() if value is not None})
    _watch(site, threads=threads, once=once, page=page, as_json=as_json, quiet=quiet)


def _watch(site: Site, *, threads: int | None, once: bool, page: bool, as_json: bool, quiet: bool) -> None:
    """Open everything, watch, and close everything."""
    import contextlib
    import json

    from dpm_edge.demo.default_engine import open_engine
    from dpm_edge.progress import say
    from dpm_edge.watch import seeing
    from dpm_edge.watch.events import Event, iso
    from dpm_edge.watch.store import WatchStore
    from dpm_edge.watch.watch_site import WatchSite

    def tell(event: Event) -> None:
        if as_json:
            click.echo(json.dumps(event.as_json(), ensure_ascii=False))
        else:
            click.echo(f"{iso(event.wall)}  {event.camera:<12} {event.sentence()}")

    with contextlib.ExitStack() as stack:
        store = stack.enter_context(WatchStore(site.folder / "watch.sqlite3"))
        watch = stack.enter_context(WatchSite(site, store, on_event=tell))
        stop_when_asked(watch)
        served = None
        if page:
            from dpm_edge.watch.page.server import PageServer

            served = stack.enter_context(PageServer(watch))
            say(f"page: {served.address}")
        engine = stack.enter_context(open_engine(site.folder, site.engine, quiet=quiet))
        gallery = stack.enter_context(_open_gallery(site, engine))
        opened = seeing.open_seeing(site, engine, gallery, threads=threads)
        watch.run(opened)
        for status in watch.source_statuses():
            if status.message:
                say(f"{status.camera}: {status.message}")
        for delivery in watch.deliveries:
            left = delivery.drain(10.0)
            if left:
                say(f"{delivery.name}: {left} events wait for the next start ({delivery.status().message})")
        if not quiet:
            frames, events = sum(watch.processed().values()), sum(watch.counts.values())
            say(f"{frames} frames, {events} events; they are kept in {store.path}")
        if served is not None and not once and not watch.stopped:
            say(f"all files have ended; the page stays at {served.address} until Ctrl-C")
            watch.wait_for_stop()


def stop_when_asked(watch: WatchSite) -> None:
    """End in good order when a service manager asks (SIGTERM)."""
    import contextlib
    import signal

    def stop(*_: Any) -> None:
        watch.stop()

    with contextlib.suppress(ValueError):  # not the main thread: whoever runs us there stops us another way
        signal.signal(signal.SIGTERM, stop)


def _open_gallery(site: Site, engine: Engine) -> Any:
    """The site's gallery; in memory, and said so, where the library of folders is missing."""
    import contextlib
    import time

    from dpm_edge.errors import GalleryError, GalleryInUse, MissingLibrary
    from dpm_edge.gallery import Gallery
    from dpm_edge.progress import say

    place = site.gallery or site.folder / "gallery"
    if site.elsewhere and "://" not in str(place):
        names = ", ".join(one.name for one in site.elsewhere)
        say(f"people at {names} are not recognised here: programs share a gallery on a server alone ([site] gallery)")
    try:
        with contextlib.suppress(GalleryError):
            return Gallery.for_engine(engine, place)
        if site.elsewhere and "://" in str(place):  # another program may be making the collection at this moment
            time.sleep(2.0)
        return Gallery.for_engine(engine, place)
    except GalleryInUse as error:
        raise GalleryInUse(
            f"{error}. Programs that watch one site share a gallery on a server: [site] gallery = "
            f'"qdrant://HOST:PORT/NAME"'
        ) from error
    except MissingLibrary as error:
        if site.gallery is not None:
            raise
        say(f"people are remembered until the end of this run only: {error}")
        return Gallery.for_engine(engine)
