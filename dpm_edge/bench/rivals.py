"""The same network for other engine libraries: built for the comparison, verified, and thrown away afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpm_edge.bench.measure import Contender
from dpm_edge.errors import SpecError, nearest
from dpm_edge.manifest import PORTABLE, Manifest
from dpm_edge.progress import say
from dpm_edge.shipped import ASSETS, MODELS

RIVALS = ("onnxruntime", "openvino", "torch")
PRECISION = "fp32"


def check(manifest: Manifest, names: Sequence[str], checkpoint: Path | None) -> None:
    """Refuse what cannot be compared with that engine, before anything is done.

    Raises:
        SpecError: a name is unknown or comes twice, is the engine itself, or torch lacks a checkpoint.
    """
    for name in names:
        if name not in RIVALS:
            raise SpecError(f"expected one of {', '.join(RIVALS)} in --against, got {name!r}.{nearest(name, RIVALS)}")
        if (name, PRECISION) == (manifest.backend, manifest.precision):
            raise SpecError(
                f"expected other libraries than the engine's own, got {name} {PRECISION}. Leave {name} out of --against"
            )
    if len(set(names)) < len(names):
        raise SpecError(f"expected each library once in --against, got {', '.join(names)}: one comes twice")
    if "torch" in names and checkpoint is None and _shipped(manifest) is None:
        raise SpecError(
            "expected the checkpoint that the engine was exported from, for --against torch, got none. "
            "Give it with --checkpoint FILE.safetensors"
        )


def build_all(
    engine: Path, names: Sequence[str], checkpoint: Path | None, scratch: Path, *, quiet: bool
) -> list[Contender]:
    """An engine directory in `scratch` for each name, fp32, of the same portable ONNX (torch: of the checkpoint).

    Raises:
        DpmError: a library is missing, or the engine is over the accuracy budget.
        SpecError: the checkpoint is of another model.
    """
    from dpm_edge.build import build

    manifest = Manifest.read(engine)
    entries = []
    for name in names:
        if not quiet:
            say(f"building the {name} {PRECISION} engine to compare with")
        model = engine / PORTABLE
        if name == "torch":
            model = checkpoint or _shipped(manifest) or model
        built = build(model, scratch / name, backend=name, precision=PRECISION, batch=manifest.batch, progress=False)
        if built.fingerprint != manifest.fingerprint:
            raise SpecError(
                f"expected the model of the engine, fingerprint {manifest.fingerprint[:16]}, got another model, "
                f"{built.fingerprint[:16]}, in {model}. Give the checkpoint that the engine was exported from"
            )
        entries.append(Contender(f"{name} {PRECISION}", scratch / name, None))
    return entries


def _shipped(manifest: Manifest) -> Path | None:
    """The checkpoint that ships, where the engine is of that model."""
    import json

    for name in MODELS:
        card = ASSETS / f"{name}.json"
        if card.is_file() and json.loads(card.read_text())["fingerprint"] == manifest.fingerprint:
            return card.with_suffix(".safetensors")
    return None
