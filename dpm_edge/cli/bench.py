"""`dpm-edge bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dpm_edge.cli.options import PATH, as_json, engine_options, quiet


class Numbers(click.ParamType):
    """Whole numbers with commas between, such as 1,8,32."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The numbers, in the order given."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"expected whole numbers with commas between, such as 1,8,32, got {value!r}", param, ctx)


@click.command("bench", short_help="How fast is an engine on this machine, and how many people does it keep up with?")
@click.argument("engine", type=PATH)
@click.option("--against", default="", metavar="NAMES", help="Compare with onnxruntime,openvino,torch (any of them).")
@click.option("--checkpoint", type=PATH, help="What the engine was exported from; for --against torch.")
@click.option("--batch", type=Numbers(), help="Crops of a call, engine only.  [default: 1,8,32, as the engine takes]")
@click.option("--streams", type=Numbers(), default="1,2", show_default=True, help="Threads that call, engine only.")
@click.option("--cameras", type=Numbers(), default="1,2,4,8", show_default=True, help="Cameras at once, end to end.")
@click.option("--seconds", type=float, default=1.5, show_default=True, help="Length of each measurement.")
@click.option("--fps", type=float, default=30.0, show_default=True, help="Frames a second of each camera.")
@click.option("--deadline", type=float, default=100.0, show_default=True, help="Milliseconds for a frame's ids.")
@click.option("--gallery", type=int, default=1000, show_default=True, help="Rows that people are looked up in.")
@click.option("--plot", type=PATH, metavar="DIR", help="Write bench-latency.png and bench-people.png there.")
@click.option("-o", "--out", type=PATH, metavar="FILE", help="Write the JSON there too.")
@engine_options
@as_json
@quiet
def command(
    engine: Path,
    against: str,
    checkpoint: Path | None,
    batch: tuple[int, ...] | None,
    streams: tuple[int, ...],
    cameras: tuple[int, ...],
    seconds: float,
    fps: float,
    deadline: float,
    gallery: int,
    plot: Path | None,
    out: Path | None,
    device: str | None,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure ENGINE on this machine: calls of the engine only, and end to end, from a frame to the ids of the people
    in it, with the batcher and a gallery, at more and more people per frame.

    Takes about a minute for each engine that keeps up with a hundred crops a second; --seconds makes it longer and
    the 99th percentiles surer. docs/bench.md says how to read it.

    \b
    Example:
      dpm-edge bench demo-out/engine
      dpm-edge bench demo-out/engine --against onnxruntime,torch --plot plots -o bench.json
    """
    import json
    import tempfile

    from dpm_edge.bench import measure, rivals
    from dpm_edge.bench import plot as picture
    from dpm_edge.bench.results import text as as_text
    from dpm_edge.errors import DpmError
    from dpm_edge.files import write_whole
    from dpm_edge.manifest import Manifest

    manifest = Manifest.read(engine)
    settings = measure.BenchSettings(
        batches=batch or measure.usual_batches(manifest.batch),
        streams=streams,
        cameras=cameras,
        seconds=seconds,
        fps=fps,
        deadline_ms=deadline,
        gallery=gallery,
    )
    names = [name.strip() for name in against.split(",") if name.strip()]
    measure.check(settings, manifest)
    rivals.check(manifest, names, checkpoint)
    if plot is not None:
        picture.check()
    if out is not None and not out.parent.is_dir():
        raise DpmError(f"expected -o to name a file in a folder that exists, got {out}: {out.parent} does not exist")
    with tempfile.TemporaryDirectory(prefix="dpm-edge-bench-") as scratch:
        name = f"{manifest.backend} {manifest.precision}" + (f" on {device}" if device else "")
        entries = [measure.Contender(name, engine, device)]
        entries += rivals.build_all(engine, names, checkpoint, Path(scratch), quiet=quiet)
        results = measure.measure(entries, settings, threads=threads, quiet=quiet)
    text = json.dumps(results, indent=2)
    if out is not None:
        write_whole(out, (text + "\n").encode())
    click.echo(text if as_json else as_text(results), nl=as_json)
    if plot is not None:
        for path in picture.draw(results, plot):
            click.echo(f"wrote {path}", err=True)
