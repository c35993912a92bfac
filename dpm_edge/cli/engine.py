"""`dpm-edge inspect` and `dpm-edge trust`: what an engine directory holds, and whether it may be opened here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpm_edge.cli.options import PATH, as_json

if TYPE_CHECKING:
    from dpm_edge.manifest import Manifest
    from dpm_edge.spec import ModelSpec


@click.command("inspect", short_help="What is in this engine, and does it fit this machine?")
@click.argument("engine", type=PATH)
@as_json
def inspect(engine: Path, as_json: bool) -> None:
    """Say what the engine directory ENGINE holds, how it was verified, and whether it would open here.

    Exit code 1 where it would not; every reason is given.

    \b
    Example:
      dpm-edge inspect demo-out/engine
    """
    from dpm_edge.manifest import Manifest
    from dpm_edge.runtime.checks import fits

    manifest = Manifest.read(engine)
    reasons = fits(manifest, engine)
    print_manifest(manifest, engine, as_json=as_json, reasons=reasons)
    if reasons:
        raise SystemExit(1)


def print_manifest(manifest: Manifest, folder: Path, *, as_json: bool, reasons: list[str] | None = None) -> None:
    """Print a manifest, and whether it fits where that was looked at."""
    import dataclasses
    import json

    fit = {} if reasons is None else {"fits": not reasons, "reasons": reasons}
    if as_json:
        click.echo(json.dumps({"engine": str(folder), **dataclasses.asdict(manifest), **fit}, indent=2))
        return
    spec, pre = manifest.spec, manifest.spec.preprocessing
    lines = {
        "engine": f"{folder}  ({manifest.backend}, {manifest.precision}, batch {manifest.batch}, {manifest.device})",
        "model": f"{spec.name}  D = {spec.dimension}, " + _network(spec),
        "input": f"{pre.height}×{pre.width} {pre.color}, mean {_numbers(pre.mean)}, std {_numbers(pre.std)}, "
        + pre.interpolation,
        "fingerprint": manifest.fingerprint[:16],
        "weights": f"licence: {spec.weights.licence}; data: {spec.weights.data}; recipe: {spec.weights.recipe}",
        "files": ", ".join(f"{name} ({_size(folder / name)})" for name in manifest.files),
        "built": f"{manifest.built.get('date', '?')} on {manifest.built.get('cpu', '?')}, "
        + ", ".join(f"{name} {version}" for name, version in manifest.libraries.items()),
        "verified": ", ".join(
            f"{key} {_short(value)}" for key, value in manifest.verification.items() if key != "candidates"
        )
        or "not",
    }
    if manifest.gpu is not None:
        lines |= _of_gpu(manifest)
    if "candidates" in manifest.verification:
        lines["candidates"] = "; ".join(_candidate(row) for row in manifest.verification["candidates"])
    if reasons is not None:
        lines["fits here"] = "yes" if not reasons else "NO"
    for name, text in lines.items():
        click.echo(f"{name:<12} {text}")
    for reason in reasons or []:
        click.echo(f"{'':<12} - {reason}")


def _of_gpu(manifest: Manifest) -> dict[str, str]:
    """What a plan was built for, and what TensorRT made of it."""
    card, resources = manifest.gpu, manifest.resources
    assert card is not None
    layers = ", ".join(f"{count} {precision}" for precision, count in card.layers.items())
    memory = ", ".join(f"{size / 1e6:.0f} MB" for size in resources.get("device_memory_bytes", ())) or "not known"
    return {
        "GPU": f"{card.name}, compute capability {card.compute_capability or '?'}, "
        f"{manifest.backend} {card.tensorrt}, driver {card.driver or '?'}, CUDA {card.cuda or '?'}, "
        f"weights {card.weights}",
        "profiles": f"{', '.join(map(str, manifest.profiles))}; device memory {memory}",
        "layers": f"{layers} (of the {resources.get('layers_of', 'plan')})",
        "trtexec": manifest.trtexec,
    }


def _candidate(row: dict[str, Any]) -> str:
    """One precision that was tried with --precision auto: its times, and whether it was chosen."""
    times = ", ".join(f"{ms:.2f} ms for {size}" for size, ms in row["milliseconds"].items())
    return f"{row['precision']} ({', '.join(x for x in (times, 'chosen' if row['chosen'] else row['why_not']) if x)})"


def _size(path: Path) -> str:
    """A file's size in words."""
    return f"{path.stat().st_size / 1e6:.1f} MB" if path.is_file() else "missing"


def _numbers(values: tuple[float, ...]) -> str:
    """Three numbers with few digits."""
    return f"({', '.join(f'{v:.6g}' for v in values)})"


def _short(value: object) -> str:
    """Numbers with few digits, the rest as it is."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


@click.command("trust", short_help="Vouch for a TensorRT plan, so that it may be opened here.")
@click.argument("engine", type=PATH, required=False)
@click.option("--list", "as_list", is_flag=True, help="List the plans that are trusted.")
@click.option("--remove", is_flag=True, help="Trust the plan of ENGINE no longer.")
@as_json
def trust(engine: Path | None, as_list: bool, remove: bool, as_json: bool) -> None:
    """Put the plan of the engine directory ENGINE on the list of those that may be opened here.

    A TensorRT plan is code: it is opened only where it was built, or where somebody vouched for it. The list holds
    sha256 sums, so that a plan that is replaced is no longer trusted. It lies in the file that $DPM_EDGE_TRUST names,
    or in dpm-edge/trusted.json in your configuration folder.

    \b
    Example:
      dpm-edge trust engine-from-the-lab
      dpm-edge trust --list
    """
    import dataclasses
    import json

    from dpm_edge.runtime import trust as trusted

    if (engine is None) != as_list or (as_list and remove):
        raise click.UsageError("expected either ENGINE (with or without --remove) or --list")
    if engine is None:
        known = trusted.listed()
        if as_json:
            rows = [dataclasses.asdict(one) for one in known]
            click.echo(json.dumps({"file": str(trusted.place()), "trusted": rows}, indent=2))
            return
        for one in known:
            click.echo(f"{one.sha256[:16]}  {one.date}  {one.folder}")
        click.echo(f"{len(known)} trusted, in {trusted.place()}", err=True)
        return
    changed = trusted.remove(engine) if remove else bool(trusted.add(engine))
    words = ("no longer trusted" if changed else "was not trusted") if remove else "trusted"
    if as_json:
        click.echo(json.dumps({"engine": str(engine), "state": words, "file": str(trusted.place())}, indent=2))
    else:
        click.echo(f"{engine}: {words}")


def _network(spec: ModelSpec) -> str:
    """What the network is, in words."""
    if not spec.foreign:
        return f"{spec.layers} blocks, mask generator {spec.hmg!r}"
    return "another's network: " + ("no masks" if not spec.masks else "masks and a map that it was taught")
