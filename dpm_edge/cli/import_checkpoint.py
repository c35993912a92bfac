"""`dpm-edge import`: another project's checkpoint becomes one of ours."""

from __future__ import annotations

import re
from pathlib import Path

import click

from dpm_edge.cli.options import PATH, as_json, quiet

IMPORTS = ("torchreid", "fast-reid", "clip-reid", "dpm", "transreid", "solider")
"""Names of dpm_edge.model.imported.read_checkpoint.IMPORTS, written here so that --help loads no torch."""


@click.command("import", short_help="Make another project's checkpoint one of ours (needs torch).")
@click.argument("family", type=click.Choice(IMPORTS))
@click.argument("file", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, metavar="CHECKPOINT", help="NAME.safetensors and NAME.json.")
@click.option("--input", "size", metavar="HxW", help="Size of the network's input, where it is not the project's own.")
@click.option("--licence", metavar="TEXT", help="Licence of the weights, for the manifests of engines.")
@as_json
@quiet
def command(
    family: str, file: Path, out: Path, size: str | None, licence: str | None, as_json: bool, quiet: bool
) -> None:
    """Read FILE (.pt, .pth, .safetensors), a checkpoint of the project FAMILY, and write it as CHECKPOINT.

    \b
    torchreid   OSNet x1_0, x0_75, x0_5, x0_25, ibn_x1_0
    fast-reid   ResNet-50, plain or with IBN, of the recipes BoT, AGW and SBS
    clip-reid   ViT-B/16: becomes a dpm-b
    dpm         DPM's ViT-B/16 with its mask generator: becomes a dpm-b with masks
    transreid   ViT-B/16 or DeiT: a dpm-b, or with the jigsaw patch module as it is
    solider     Swin tiny, small or base, semantic weight 0.2

    Code in FILE is never run. Every tensor must fit; what does not is named, and nothing is written. CHECKPOINT goes
    wherever a checkpoint of ours goes: `build`, `adapt`, `eval`.

    \b
    Example:
      dpm-edge import torchreid osnet_x0_25_msmt17.pt -o osnet
      dpm-edge build osnet.safetensors -o engine
    """
    import json

    from dpm_edge.env import installed
    from dpm_edge.errors import MissingLibrary
    from dpm_edge.progress import say

    if not installed("torch"):
        raise MissingLibrary("torch", "importing a checkpoint", "pip install 'dpm-edge[build]'")
    from dpm_edge.model import checkpoint
    from dpm_edge.model.imported.read_checkpoint import read_checkpoint

    read = read_checkpoint(family, file, size=_size(size), licence=licence)
    weights = checkpoint.save(read.net, out)
    spec, pre = read.net.spec, read.net.spec.preprocessing
    if as_json:
        facts = {"checkpoint": str(weights), "model": spec.to_dict(), "left_out": read.left_out}
        click.echo(json.dumps({**facts, "fingerprint": checkpoint.fingerprint(read.net)}))
        return
    if read.left_out and not quiet:
        some = ", ".join(read.left_out[:4]) + ("…" if len(read.left_out) > 4 else "")
        say(f"left out, because only training needs it: {some}")
    masks = "no masks" if not spec.masks else "masks of DPM" if family == "dpm" else "masks not yet taught"
    shape = f"{pre.color.upper()} {pre.height}x{pre.width}"
    click.echo(f"{weights}: {spec.name}, input {shape}, {spec.dimension} dimensions, {masks}")


def _size(text: str | None) -> tuple[int, int] | None:
    """(height, width) out of what --input said."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if found is None:
        raise click.UsageError(f"expected --input as HxW, such as 256x128, got {text!r}")
    return int(found[1]), int(found[2])
