"""`refit`: other weights for a plan that was built without any, in seconds instead of a build.

A stripped plan does not change with its weights: the new engine directory has the same engine.plan, and a typed graph
(engine.onnx) with the new weights, which the runtime puts into the plan when it opens it.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import onnx
from onnx import ModelProto

from dpm_edge import env
from dpm_edge.build import low_precision, source, verify
from dpm_edge.build.pipeline import engine_folder
from dpm_edge.build.source import write_golden
from dpm_edge.build.verify import AccuracyBudget
from dpm_edge.errors import CheckpointError, SpecError
from dpm_edge.files import sha256
from dpm_edge.labels import AUTO
from dpm_edge.layouts import read_dataset
from dpm_edge.manifest import CALIBRATED, NAME, PORTABLE, TYPED, Manifest, rebuild_advice
from dpm_edge.progress import say
from dpm_edge.runtime import trust


def refit(
    engine: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    calibrate: str | Path | None = None,
    labelled: str | Path | None = None,
    layout: str = AUTO,
    budget: AccuracyBudget | None = None,
    force: bool = False,
    progress: bool = True,
) -> Manifest:
    """Write the engine directory `out`: the plan of `engine` with the weights of `model`, verified against `model`.

    Args:
        engine: an engine directory whose plan was built with --strip-weights, in fp32, fp16 or bf16.
        model: a checkpoint or portable ONNX of the same network.
        out: the directory to write; may be `engine` itself.
        calibrate: a folder of crops to verify on; the shipped samples without it.
        labelled, layout, budget, force, progress: as in `build`.

    Raises:
        SpecError: the plan holds its weights, is quantised, or has people in it; the message has the command to build.
        CheckpointError: the model is another network than the plan's.
        EngineError, ImageError, DataError, MissingLibrary, BuildRefused: as in `build`.
    """
    engine, model, out = Path(engine), Path(model), Path(out)
    old = Manifest.read(engine)
    old.check_files(engine)
    people = read_dataset(Path(labelled), layout) if labelled else None
    _check(old, engine)
    _, verification = source.choose_crops(Path(calibrate or source.SAMPLE_CROPS), calibrate=False, quiet=not progress)
    with engine_folder(out) as folder:
        if progress:
            say(f"reading {model}")
        read = source.read(model, folder / PORTABLE, quiet=not progress)
        mask_head = "plugin" if "--mask-head" in old.options else "native"
        typed, _ = low_precision.assemble(
            read.model,
            read.spec,
            old.backend,
            old.precision,
            [],
            people=None,
            mask_head=mask_head,
            quiet=not progress,
        )
        _check_same_network(onnx.load(engine / TYPED), typed, model, engine)
        onnx.save_model(typed, folder / TYPED)
        shutil.copy(engine / old.engine, folder / old.engine)
        write_golden(folder, read, verification[0])
        manifest = replace(
            old,
            spec=read.spec,
            fingerprint=read.fingerprint,
            files={p.name: sha256(p) for p in sorted(folder.iterdir()) if p.name != NAME},
            built=env.machine_card(),
            verification={"golden_cosine": -1.0},
        )
        manifest.write(folder)
        measured = verify.examine(folder, read, verification, people, budget or AccuracyBudget(), quiet=not progress)
        manifest = replace(manifest, verification=verify.keep_or_refuse(measured, force=force))
        manifest.write(folder)
    if progress:
        say(f"wrote {out}")
    return manifest


def _check(old: Manifest, engine: Path) -> None:
    """Refuse engines whose weights cannot be changed."""
    if old.backend not in trust.PLANS or old.gpu is None or old.gpu.weights != "stripped":
        raise SpecError(
            f"expected a plan that was built with --strip-weights, got {engine}, which holds its weights. "
            f"{rebuild_advice(engine)} "
            "(with --backend tensorrt --strip-weights they can be from then on)"
        )
    if old.precision in CALIBRATED:
        raise SpecError(
            f"expected a plan in fp32, fp16 or bf16, got {old.precision} in {engine}: its scales belong to its "
            "weights, and TensorRT does not change them. "
            f"{rebuild_advice(engine)}"
        )
    if "logits" in old.outputs:
        raise SpecError(
            f"expected a plan without people, got {engine}, which holds those of --closed-set as its old model "
            f"sees them. {rebuild_advice(engine)}"
        )


def _check_same_network(old: ModelProto, new: ModelProto, model: Path, engine: Path) -> None:
    """Operators in order, and name, type and shape of every weight must be the plan's.

    Raises:
        CheckpointError: naming the first difference.
    """
    if [n.op_type for n in old.graph.node] != [n.op_type for n in new.graph.node]:
        raise CheckpointError(
            f"expected the network of the plan in {engine}, got another network in {model}. {rebuild_advice(engine)}"
        )
    expected = {t.name: (t.data_type, tuple(t.dims)) for t in old.graph.initializer}
    got = {t.name: (t.data_type, tuple(t.dims)) for t in new.graph.initializer}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            raise CheckpointError(
                f"expected the network of the plan in {engine}, got another network in {model}: weight {name} is "
                f"{got.get(name)}, not {expected.get(name)} (ONNX type, shape). {rebuild_advice(engine)}"
            )
