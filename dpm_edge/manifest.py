"""The manifest of an engine directory: what is in it, what it was built for, and how it was verified.

ENGINE_DIR/
    manifest.json
    model.onnx          the portable ONNX: rebuilds the engine on any machine
    golden.npz          one input crop and what the reference made of it
    engine files        named in `files`, such as engine.xml + engine.bin, engine.onnx, engine.plan
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpm_edge.errors import EngineError, SpecError
from dpm_edge.files import sha256, write_whole
from dpm_edge.spec import ModelSpec, strict

FORMAT = 1
NAME = "manifest.json"
PORTABLE = "model.onnx"
GOLDEN = "golden.npz"
BACKENDS = ("openvino", "onnxruntime", "tensorrt", "tensorrt-rtx")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")


@dataclass(frozen=True, kw_only=True)
class BatchRange:
    """Batch sizes an engine takes in one call; larger requests are cut into calls of at most `high`."""

    low: int = 1
    best: int = 8
    high: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.best <= self.high:
            raise SpecError(f"batch {self} must rise and start at 1 or more, such as 1:8:64")

    def __str__(self) -> str:
        return f"{self.low}:{self.best}:{self.high}"

    @classmethod
    def parse(cls, text: str) -> BatchRange:
        """From "8" or "1:8:64".

        Raises:
            SpecError: anything else.
        """
        parts = text.split(":")
        if len(parts) not in (1, 3) or not all(p.isdigit() for p in parts):
            raise SpecError(f"batch is {text!r}; low:best:high such as 1:8:64, or one number, is wanted")
        numbers = [int(p) for p in parts]
        low, best, high = numbers if len(numbers) == 3 else (1, numbers[0], numbers[0])
        return cls(low=low, best=best, high=high)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything the runtime checks before it opens an engine."""

    spec: ModelSpec
    """The network, its preprocessing and its weights' licence."""
    fingerprint: str
    """Names the weights and the spec together; a gallery holds embeddings of one fingerprint."""
    backend: str
    """One of BACKENDS."""
    precision: str
    """One of PRECISIONS."""
    batch: BatchRange
    """Batch sizes of one call."""
    engine: str
    """The file that the backend opens."""
    files: dict[str, str]
    """File name → sha256, for every file of the directory but the manifest."""
    device: str
    """What it was built for: "CPU", or a GPU's name and compute capability."""
    libraries: dict[str, str]
    """Library → version at build time."""
    built: dict[str, Any] = field(default_factory=dict)
    """Machine card of the building machine."""
    verification: dict[str, Any] = field(default_factory=dict)
    """Reference, crops, cosine of features, error of masks, change of mAP, budget, passed, forced."""
    format: int = FORMAT
    """Version of this layout."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise SpecError(f"backend {self.backend!r} is unknown; one of {', '.join(BACKENDS)} is wanted")
        if self.precision not in PRECISIONS:
            raise SpecError(f"precision {self.precision!r} is unknown; one of {', '.join(PRECISIONS)} is wanted")

    def to_json(self) -> str:
        """Indented JSON, keys in the order of the fields, and a seal over them that shows later edits."""
        data = json.loads(json.dumps(dataclasses.asdict(self)))
        return json.dumps({**data, "seal": _seal(data)}, indent=2) + "\n"

    def write(self, folder: Path) -> None:
        """Write manifest.json into `folder`, whole."""
        write_whole(folder / NAME, self.to_json().encode())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of an engine directory.

        Raises:
            EngineError: it is missing, is not JSON, is of a newer format, lacks or invents a field, or was edited.
        """
        path = folder / NAME
        if not path.is_file():
            raise EngineError(
                f"{folder} is no engine directory: no {NAME}. Build one: dpm-edge build MODEL -o {folder}"
            )
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.get("format", 0) > FORMAT:
                raise EngineError(f"{path} is of format {data['format']}; {FORMAT} is read here. Upgrade dpm-edge")
            seal = data.pop("seal", None)
            edited = seal != _seal(data)
            data["spec"] = ModelSpec.from_dict(data["spec"])
            data["batch"] = strict(BatchRange, data["batch"], "batch")
            manifest = strict(cls, data, "manifest")
        except (ValueError, KeyError, AttributeError, TypeError, SpecError) as error:
            raise EngineError(f"{path} is damaged ({error}). {rebuild_advice(folder)}") from error
        if edited:
            raise EngineError(
                f"{path} was edited after the build (its seal does not fit), so it no longer says what the engine is. "
                f"{rebuild_advice(folder)}"
            )
        return manifest

    def check_files(self, folder: Path) -> None:
        """Compare every file's sha256.

        Raises:
            EngineError: a file is missing or is not the one that was built.
        """
        for name, wanted in self.files.items():
            path = folder / name
            if not path.is_file():
                raise EngineError(f"{folder} lacks {name}. {rebuild_advice(folder)}")
            if sha256(path) != wanted:
                raise EngineError(f"{path} is not the file that was built (sha256 differs). {rebuild_advice(folder)}")


def _seal(data: dict[str, Any]) -> str:
    """sha256 of the manifest's own content: against mistakes, not against an enemy."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def rebuild_advice(folder: Path) -> str:
    """The command that builds the engine again from the portable ONNX beside it."""
    return f"Build it again: dpm-edge build {folder / PORTABLE} -o {folder}"
