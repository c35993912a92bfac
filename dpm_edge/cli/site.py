"""`dpm-edge site`: adapt, build, migrate and calibrate for a site in one command that can be stopped and taken back."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import click

from dpm_edge.cli.options import PATH, as_json, quiet
from dpm_edge.manifest import BACKENDS, CALIBRATED, PRECISIONS

FOLDER = click.argument("folder", type=PATH)


@click.group("site", short_help="Adapt to a site's cameras, and keep every version to go back to.")
def command() -> None:
    """Adapt a model to a site, build its engine, move the gallery to it and calibrate it, in one command.

    Each run makes a version; it and the one before it are kept. FOLDER/current is the one in use: open
    FOLDER/current/engine and FOLDER/current/gallery.

    \b
    Example:
      dpm-edge site init shop dpm-n --video door.mp4 --boxes door.csv --video yard.mp4 --boxes yard.csv --gallery seen
      dpm-edge site update shop --video may/door.mp4 --boxes may/door.csv --video may/yard.mp4 --boxes may/yard.csv
      dpm-edge site back shop
    """


def sources(command: Any) -> Any:
    """Add the options that say what a version is made of."""
    for option in (
        click.option("--fmr", type=click.FloatRange(0, 1, min_open=True), help="Of the calibration.  [default: 0.001]"),
        click.option("--precision", type=click.Choice(PRECISIONS), help="Of the engine.  [default: fp32]"),
        click.option("--backend", type=click.Choice(BACKENDS), help="Of the engine.  [default: openvino]"),
        click.option("--minutes", type=float, help="Time for adapting.  [default: 60]"),
        click.option("--check", type=PATH, metavar="DIR", help="A few labelled pictures that judge the model."),
        click.option("--labels", type=PATH, metavar="FILE", help="Which tracks are one person (`dpm-edge label`)."),
        click.option("--first-frame", type=click.IntRange(0), help="Number of a video's first frame in its boxes."),
        click.option("--every", type=click.IntRange(1), help="Crops of every n-th frame.  [default: 5]"),
        click.option("--boxes", type=PATH, multiple=True, metavar="FILE", help="Tracks of each --video, in order."),
        click.option("--video", "videos", type=PATH, multiple=True, metavar="FILE", help="A camera's video."),
        click.option("--crops", type=PATH, metavar="DIR", help="CAMERA/TRACK/*.jpg, in place of videos."),
    ):
        command = option(command)
    return command


DEFAULTS: dict[str, Any] = {
    "crops": None, "videos": [], "boxes": [], "every": 5, "first_frame": None, "labels": None, "check": None,
    "minutes": 60.0, "backend": "openvino", "precision": "fp32", "fmr": 1e-3,
}  # fmt: skip


@command.command("init")
@FOLDER
@click.argument("model", type=PATH)
@click.option("--gallery", metavar="PLACE", help="The gallery that the site has; it is read, and stays as it is.")
@click.option("--pictures", type=PATH, help="Folder that the sources of the gallery's rows are below.")
@sources
@as_json
@quiet
def init(
    folder: Path, model: Path, gallery: str | None, pictures: Path | None, as_json: bool, quiet: bool, **said: Any
) -> None:
    """Begin a site in FOLDER from MODEL, dpm-n or a checkpoint, and make its first version.

    Stopped, even by kill -9, the same command goes on. A model that is worse on held-out crops is refused, and nothing
    is in use then but what you had.

    \b
    Example:
      dpm-edge site init shop dpm-n --video door.mp4 --boxes door.csv --video yard.mp4 --boxes yard.csv
    """
    from dpm_edge.errors import DataError
    from dpm_edge.site_versions import SiteFolder

    site = SiteFolder(folder)
    place = gallery if gallery is None or "://" in gallery else str(Path(gallery).resolve())
    settings = _merged({**DEFAULTS, "gallery": place, "pictures": _whole(pictures), "model": _whole(model)}, said)
    with site.locked():
        site.begin(settings)
        if site.finished():
            raise DataError(
                f"expected a site without a version, got {folder} with {len(site.finished())}. "
                f"Make the next one: dpm-edge site update {folder}"
            )
        _report(site, _make(site, settings, quiet), as_json)


@command.command("update")
@FOLDER
@sources
@as_json
@quiet
def update(folder: Path, as_json: bool, quiet: bool, **said: Any) -> None:
    """Make the next version, from the model and the gallery in use; what is given here replaces what was said before.

    The version in use stays in use until the new one is whole, and is kept to go back to. Stopped, even by kill -9,
    the same command goes on.

    \b
    Example:
      dpm-edge site update shop --video may/door.mp4 --boxes may/door.csv --video may/yard.mp4 --boxes may/yard.csv
    """
    from dpm_edge.site_versions import SiteFolder

    site = SiteFolder(folder)
    with site.locked():
        settings = _merged(site.settings, said)
        site.change(settings)
        _report(site, _make(site, settings, quiet), as_json)


@command.command("back")
@FOLDER
@as_json
def back(folder: Path, as_json: bool) -> None:
    """Use the version before the one in use again. Rows that were added to the newer gallery meanwhile stay there.

    \b
    Example:
      dpm-edge site back shop
    """
    from dpm_edge.site_versions import SiteFolder

    site = SiteFolder(folder)
    site.settings  # noqa: B018 (there must be a site)
    with site.locked():
        version = site.back()
    _report(site, version, as_json)


@command.command("show")
@FOLDER
@as_json
def show(folder: Path, as_json: bool) -> None:
    """The versions of a site, and which one is in use.

    \b
    Example:
      dpm-edge site show shop
    """
    from dpm_edge.site_versions import DONE, SiteFolder

    site = SiteFolder(folder)
    settings, current = site.settings, site.current
    rows = [
        {
            "version": version.name,
            "in use": current is not None and version.name == current.name,
            **(json.loads((version / DONE).read_text()) if (version / DONE).is_file() else {"unfinished": True}),
        }
        for version in site.versions()
    ]
    if as_json:
        click.echo(json.dumps({"settings": settings, "versions": rows}, indent=2))
        return
    for row in rows:
        click.echo(f"{'*' if row.pop('in use') else ' '} {row.pop('version')}  {_words(row)}")
    if not rows:
        click.echo("no version yet")


def _whole(path: Path | None) -> str | None:
    """A path that means the same from another folder; a model that ships keeps its name."""
    return None if path is None else str(path.resolve()) if path.exists() else str(path)


def _merged(settings: dict[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """Settings with what was said on this command line.

    Raises:
        UsageError: neither crops nor videos, or both.
    """
    new = {name: value for name, value in said.items() if value not in (None, ())}
    if "crops" in new and "videos" not in new:
        settings = {**settings, "videos": [], "boxes": []}
    elif "videos" in new and "crops" not in new:
        settings = {**settings, "crops": None}
    for name in ("crops", "labels", "check"):
        new |= {name: _whole(new[name])} if name in new else {}
    for name in ("videos", "boxes"):
        new |= {name: [_whole(one) for one in new[name]]} if name in new else {}
    merged = {**settings, **new}
    if bool(merged["crops"]) == bool(merged["videos"]):
        got = "both" if merged["crops"] else "neither"
        raise click.UsageError(f"expected --crops DIR, or --video FILE with --boxes FILE, got {got}")
    return merged


def _make(site: Any, settings: dict[str, Any], quiet: bool) -> Path:
    """Make the next version, or go on with the one that was begun, and use it."""
    from dpm_edge.files import write_whole
    from dpm_edge.progress import say
    from dpm_edge.site_versions import DONE

    current = site.current
    made_of = {
        **settings,
        "model": settings["model"] if current is None else str(current / "adapted.safetensors"),
        "gallery": settings["gallery"] if current is None or not settings["gallery"] else str(current / "gallery"),
    }
    version = site.next_version(made_of)
    result: dict[str, Any] = {}
    steps = {"adapt": adapt, "build": build, "migrate": migrate, "calibrate": calibrate}
    with contextlib.redirect_stdout(sys.stderr):  # what the steps print is status here
        for number, (name, step) in enumerate(steps.items(), start=1):
            if not quiet:
                say(f"{version.name}: step {number} of {len(steps)}, {name}")
            result |= step(version, made_of, quiet)
    write_whole(version / DONE, (json.dumps(result, indent=1) + "\n").encode())
    site.use(version)
    for gone in site.forget_others(version, current):
        if not quiet:
            say(f"deleted version {gone.name}; the new one and the one before it are kept")
    return version


def adapt(version: Path, made_of: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """Write adapted.safetensors and cameras.json, or raise where the model is worse."""
    from dpm_edge.cli.train import adapt as command

    report = version / "adapt.json"
    if not (report.is_file() and json.loads(report.read_text()).get("written")):
        assert command.callback is not None, "it is a command"
        command.callback(
            checkpoint=Path(made_of["model"]), crops=_path(made_of["crops"]),
            videos=tuple(map(Path, made_of["videos"])), boxes=tuple(map(Path, made_of["boxes"])),
            every=made_of["every"], first_frame=made_of["first_frame"], out=version, check=_path(made_of["check"]),
            labels=_path(made_of["labels"]), minutes=made_of["minutes"], rounds=12, seed=0, force=False,
            as_json=False, quiet=quiet,
        )  # fmt: skip
    told = json.loads(report.read_text())
    return {name: told[name] for name in ("date", "crops", "cameras", "evidence", "check")}


def build(version: Path, made_of: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """Make the engine."""
    from dpm_edge.manifest import NAME, Manifest

    out = version / "engine"
    if not (out / NAME).is_file():
        from dpm_edge.build import build as build_engine

        crops = made_of["crops"] or version / "crops"
        build_engine(
            version / "adapted.safetensors", out, backend=made_of["backend"], precision=made_of["precision"],
            calibrate=crops if made_of["precision"] in CALIBRATED else None, statistics=version / "cameras.json",
            progress=not quiet,
        )  # fmt: skip
    return {"engine": Manifest.read(out).fingerprint[:12]}


def migrate(version: Path, made_of: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """Embed the gallery's pictures again into a gallery of this version; the old one stays as it is."""
    from dpm_edge.files import write_whole
    from dpm_edge.gallery.jobs.migrate import migrate as move
    from dpm_edge.runtime import Engine

    if not made_of["gallery"]:
        return {"rows": None, "rows without a picture": None}
    report = version / "migrated.json"
    if not report.is_file():
        with Engine.load(version / "engine") as engine:
            done = move(
                made_of["gallery"], engine, to=version / "gallery", pictures=_path(made_of["pictures"]), quiet=quiet
            )
        told = {"rows": done.rows, "rows without a picture": len(done.lost)}
        write_whole(report, (json.dumps(told) + "\n").encode())
    return json.loads(report.read_text())


def calibrate(version: Path, made_of: dict[str, Any], quiet: bool) -> dict[str, Any]:
    """Calibrate by the labelled pictures, else by tracks, and keep it with the gallery; say why where it cannot be."""
    from dpm_edge.cli.calibrate import command
    from dpm_edge.errors import DataError
    from dpm_edge.gallery import Gallery
    from dpm_edge.gallery.calibration import Calibration

    out = version / "calibration.json"
    if not out.is_file():
        labelled = _path(made_of["check"])
        assert command.callback is not None, "it is a command"
        try:
            command.callback(
                model=version / "engine", data=labelled, out=out,
                tracks=Path(made_of["crops"] or version / "crops") if labelled is None else None, fmr=made_of["fmr"],
                bands=3, centre=True, plot=False, metric="masked", layout="auto", device=None, threads=None,
                as_json=False, quiet=quiet,
            )  # fmt: skip
        except DataError as error:
            return {"calibration": f"none: {error}"}
    known = Calibration.load(out)
    if made_of["gallery"]:
        with Gallery.open(version / "gallery") as gallery:
            gallery.use_calibration(known)
    return {"calibration": f"by {known.by}, false-match rate {known.wanted_false_match_rate:g}"}


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def _report(site: Any, version: Path, as_json: bool) -> None:
    """Print what is in use now."""
    from dpm_edge.site_versions import CURRENT, DONE

    told = json.loads((version / DONE).read_text())
    if as_json:
        click.echo(json.dumps({"version": version.name, "in use": str(site.folder / CURRENT), **told}, indent=2))
        return
    click.echo(f"{site.folder / CURRENT} is version {version.name}: {_words(told)}")


def _words(told: dict[str, Any]) -> str:
    """A version in a few words."""
    if told.get("unfinished"):
        return "unfinished"
    parts = [f"engine of model {told['engine']}, from {told['crops']} crops of {len(told['cameras'])} cameras"]
    if told["evidence"]:
        parts.append(f"held-out mAP {told['evidence']['before']:.1f} -> {told['evidence']['after']:.1f}")
    if told["rows"] is not None:
        parts.append(f"gallery of {told['rows']} rows ({told['rows without a picture']} left behind without a picture)")
    return "; ".join([*parts, f"calibration {told['calibration']}"])
