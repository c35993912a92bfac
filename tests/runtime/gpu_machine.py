"""A machine with a fake GPU and a fake TensorRT, and engine directories of the tiny network for it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy_kernels
import pytest
import tiny_engine
from fake_cuda import FakeCuda
from fake_plans import VERSION, FakeTensorRt

from dpm_edge import Engine, env
from dpm_edge.files import sha256
from dpm_edge.manifest import BatchRange, GpuCard, Manifest

CARD = GpuCard(name="Orin", compute_capability="8.7", tensorrt=VERSION, driver="12.6", cuda="12.6")
PROFILES = BatchRange.parse_all("1:4:8")


@dataclass
class Machine:
    """What is fake on it."""

    cuda: FakeCuda
    trt: FakeTensorRt
    folder: Path

    def engine(self, plan: bytes = b"plan 0", **changes: Any) -> Path:
        """An engine directory of backend tensorrt; `changes` go to the manifest."""
        folder = tiny_engine.write_engine(self.folder / "engine")
        (folder / "engine.plan").write_bytes(plan)
        (folder / "engine.onnx").write_bytes(b"the graph that a stripped plan gets its weights from")
        if "logits" in changes.get("outputs", ()):
            (folder / "people.json").write_text("[]")
        fields: dict[str, Any] = {
            "backend": "tensorrt",
            "engine": "engine.plan",
            "device": "Orin sm_87",
            "files": {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.name != "manifest.json"},
            "profiles": PROFILES,
            "gpu": CARD,
            "libraries": {"tensorrt": VERSION},
        }
        replace(Manifest.read(folder), **{**fields, **changes}).write(folder)
        return folder

    def open(self, **changes: Any) -> Engine:
        """An open engine."""
        return Engine.load(self.engine(**changes), trusted=True)


def make(
    folder: Path,
    patch: pytest.MonkeyPatch,
    *,
    integrated: bool = False,
    kernels: bool = True,
    profiles: str = "1:4:8",
) -> Machine:
    """Put the fakes in place of cuda.bindings.driver and tensorrt."""
    written = numpy_kernels.write_descriptions(folder / "kernels") if kernels else None
    cuda = FakeCuda(written, integrated)
    spans = tuple((span.low, span.best, span.high) for span in BatchRange.parse_all(profiles))
    trt = FakeTensorRt(cuda, spans)
    versions = env.version
    patch.setattr("dpm_edge.runtime.gpu.device.cuda_driver", lambda: cuda)
    patch.setattr("dpm_edge.env.version", lambda name: VERSION if name == "tensorrt" else versions(name))
    patch.setitem(sys.modules, "tensorrt", trt)  # type: ignore[arg-type]
    if written is not None:
        patch.setenv("DPM_EDGE_KERNELS", str(written))
    return Machine(cuda, trt, folder)
