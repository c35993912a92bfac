"""`dpm-edge import`: another project's checkpoint becomes one of ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dpm_edge.cli.build import foreign_options
from dpm_edge.cli.options import PATH, as_json, quiet

if TYPE_CHECKING:
    from dpm_edge.model.foreign_network import AnyNetwork

IMPORTS = ("torchreid", "fast-reid", "clip-reid", "dpm", "transreid", "solider")
"""Names of dpm_edge.model.imported.read_checkpoint.IMPORTS, written here so that --help loads no torch."""
ONNX = "onnx"
"""In place of a project: FILE is an ONNX of any."""
NEEDS = {ONNX: ("torch", "onnx", "onnxruntime")}
"""Kind of file → libraries that reading it needs; torch where it is not here."""


@click.command("import", short_help="Make another project's checkpoint or ONNX one of ours (needs torch).")
@click.argument("kind", type=click.Choice([*IMPORTS, ONNX]))
@click.argument("file", type=PATH)
@click.option("-o", "--out", type=PATH, required=True, metavar="CHECKPOINT", help="NAME.safetensors and NAME.json.")
@foreign_options
@as_json
@quiet
def command(kind: str, file: Path, out: Path, as_json: bool, quiet: bool, **described: str | None) -> None:
    """Read FILE, a network of another project, and write it as CHECKPOINT.

    \b
    torchreid   OSNet x1_0, x0_75, x0_5, x0_25, ibn_x1_0
    fast-reid   ResNet-50, plain or with IBN, of the recipes BoT, AGW and SBS
    clip-reid   ViT-B/16: becomes a dpm-b
    dpm         DPM's ViT-B/16 with its mask generator: becomes a dpm-b with masks
    transreid   ViT-B/16 or DeiT: a dpm-b, or with the jigsaw patch module as it is
    solider     Swin tiny, small or base, semantic weight 0.2
    onnx        any network that `build` takes, as ONNX or OpenVINO IR, with --family or with --color and --mean

    All but onnx are .pt, .pth or .safetensors, know their preprocessing, and take only --input, where it is not the
    project's own, and --licence. Code in FILE is never run. Every tensor must fit; what does not is named, and nothing
    is written. CHECKPOINT goes wherever a checkpoint of ours goes: `build`, `adapt`, `eval`.

    \b
    Example:
      dpm-edge import torchreid osnet_x0_25_msmt17.pt -o osnet
      dpm-edge import onnx osnet_x0_25_msmt17.onnx --family torchreid -o osnet
      dpm-edge build osnet.safetensors -o engine
    """
    import json

    from dpm_edge.progress import say

    _check_options(kind, described)
    _check_libraries(kind)
    from dpm_edge.model import checkpoint

    net, left_out = _read(kind, file, described)
    weights = checkpoint.save(net, out)
    spec, pre = net.spec, net.spec.preprocessing
    if as_json:
        facts = {"checkpoint": str(weights), "model": spec.to_dict(), "left_out": left_out}
        click.echo(json.dumps({**facts, "fingerprint": checkpoint.fingerprint(net)}))
        return
    if left_out and not quiet:
        some = ", ".join(left_out[:4]) + ("…" if len(left_out) > 4 else "")
        say(f"left out, because only training needs it: {some}")
    masks = "no masks" if not spec.masks else "masks of DPM" if kind == "dpm" else "masks not yet taught"
    shape = f"{pre.color.upper()} {pre.height}x{pre.width}"
    click.echo(f"{weights}: {spec.name}, input {shape}, {spec.dimension} dimensions, {masks}")


def _check_options(kind: str, described: dict[str, str | None]) -> None:
    """Refuse options that a project's checkpoint answers itself."""
    given = [f"--{name}" for name, value in described.items() if value is not None and name not in ("input", "licence")]
    if kind != ONNX and given:
        raise click.UsageError(f"expected {', '.join(given)} with onnx only, got {kind}, whose preprocessing is known")


def _check_libraries(kind: str) -> None:
    from dpm_edge.env import installed
    from dpm_edge.errors import MissingLibrary

    what = "an ONNX" if kind == ONNX else "a checkpoint"
    for library in NEEDS.get(kind, ("torch",)):
        if not installed(library):
            raise MissingLibrary(library, f"importing {what}", "pip install 'dpm-edge[build]'")


def _read(kind: str, file: Path, described: dict[str, str | None]) -> tuple[AnyNetwork, list[str]]:
    """The network, and names of tensors that were left out."""
    if kind == ONNX:
        from dpm_edge.build import trainable
        from dpm_edge.build.foreign import ForeignOptions

        return trainable.read(file, ForeignOptions(**described)), []
    from dpm_edge.model.imported.read_checkpoint import read_checkpoint

    read = read_checkpoint(kind, file, size=_size(described["input"]), licence=described["licence"])
    return read.net, read.left_out


def _size(text: str | None) -> tuple[int, int] | None:
    """(height, width) out of what --input said."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)[x×](\d+)", text)
    if found is None:
        raise click.UsageError(f"expected --input as HxW, such as 256x128, got {text!r}")
    return int(found[1]), int(found[2])
