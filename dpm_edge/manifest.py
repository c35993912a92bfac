"""The manifest of an engine directory: what is in it, what it was built for, and how it was verified.

ENGINE_DIR/
    manifest.json
    model.onnx          the portable ONNX: rebuilds the engine on any machine
    golden.npz          one input crop and what the reference made of it
    people.json         with "logits" among the outputs: the names of the people, in the order of the logits
    cameras.json        of an engine that was built for a site: what the features of each of its cameras have in common
    engine files        named in `files`: engine.xml + engine.bin, engine.onnx, engine.plan + engine.onnx, or for
                        torch model.safetensors + model.json
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shlex
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
PEOPLE = "people.json"
CAMERAS = "cameras.json"
TYPED = "engine.onnx"
"""The graph that a TensorRT plan was built from, its types written in: for trtexec, and where the weights of a plan
that was built without them come from."""
BACKENDS = ("openvino", "onnxruntime", "tensorrt", "tensorrt-rtx", "torch")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
CALIBRATED = ("int8", "fp8")
"""Precisions that are calibrated on crops of people."""
OUTPUTS = ("feature", "mask", "visibility", "logits")
WITH_MAP = ("openvino", "onnxruntime")
"""Backends whose engines hand on the map `visibility`, of models that have one."""
HARDWARE = ("none", "ampere_plus", "same_compute_capability")
WEIGHTS = ("whole", "stripped")


@dataclass(frozen=True, kw_only=True)
class BatchRange:
    """Batch sizes an engine takes in one call; larger requests are cut into calls of at most `high`."""

    low: int = 1
    best: int = 8
    high: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.best <= self.high:
            raise SpecError(f"expected batch sizes that rise from 1 or more, such as 1:8:64, got {self}")

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
            raise SpecError(f"expected a batch as low:best:high, such as 1:8:64, or one number, got {text!r}")
        numbers = [int(p) for p in parts]
        low, best, high = numbers if len(numbers) == 3 else (1, numbers[0], numbers[0])
        return cls(low=low, best=best, high=high)

    @classmethod
    def parse_all(cls, text: str) -> tuple[BatchRange, ...]:
        """From "1:1:1,2:8:64": the ranges of several optimisation profiles, rising and without a gap or an overlap.

        Raises:
            SpecError: a range cannot be read, or does not start right above the one before it.
        """
        ranges = tuple(cls.parse(part.strip()) for part in text.split(","))
        for below, above in itertools.pairwise(ranges):
            if above.low != below.high + 1:
                raise SpecError(
                    f"expected a range from {below.high + 1} on after batch {below}, got {above}. Every size needs "
                    "exactly one profile"
                )
        return ranges

    @classmethod
    def whole(cls, ranges: tuple[BatchRange, ...]) -> BatchRange:
        """The one range that covers all of them: lowest low, best of the last, highest high."""
        return cls(low=ranges[0].low, best=ranges[-1].best, high=ranges[-1].high)


@dataclass(frozen=True, kw_only=True)
class GpuCard:
    """The GPU side of an engine: what the machine that loads it must match. A plan fits one GPU and one TensorRT."""

    name: str
    """The GPU's name, such as "Orin"."""
    compute_capability: str
    """Such as "8.7"."""
    tensorrt: str
    """Version of TensorRT (or of TensorRT for RTX) that built the plan; "" for torch."""
    driver: str = ""
    """Version of the CUDA driver interface, such as "12.6"; "" where it could not be asked."""
    cuda: str = ""
    """Version of the CUDA runtime, such as "12.6"; "" where it could not be asked."""
    plugin: str | None = None
    """sha256 of the plugin library that the plan calls; None where it calls none."""
    timing_cache: str = ""
    """Key of the timing cache that the build used; "" without one."""
    hardware_compatibility: str = "none"
    """One of HARDWARE: GPUs other than `name` on which the plan may be opened."""
    version_compatible: bool = False
    """Whether later TensorRT versions of the same major version may open the plan."""
    weights: str = "whole"
    """One of WEIGHTS: whether the plan holds its weights, or is refitted from TYPED when it is opened."""
    layers: dict[str, int] = field(default_factory=dict)
    """Precision → number of the plan's layers whose first output has it."""

    def __post_init__(self) -> None:
        if self.hardware_compatibility not in HARDWARE:
            raise SpecError(
                f"expected a hardware compatibility of {', '.join(HARDWARE)}, got {self.hardware_compatibility!r}"
            )
        if self.weights not in WEIGHTS:
            raise SpecError(f"expected weights of {', '.join(WEIGHTS)}, got {self.weights!r}")


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
    """Reference, crops, cosine of features, error of masks, change of mAP, budget, passed, forced; with
    --precision auto also the candidates that were measured."""
    profiles: tuple[BatchRange, ...] = ()
    """Every optimisation profile of a plan, rising; `batch` covers them all."""
    outputs: tuple[str, ...] = ("feature", "mask")
    """What the engine gives, of OUTPUTS; with "logits" the directory holds people.json."""
    gpu: GpuCard | None = None
    """What was built for a GPU: what the machine that opens it must match."""
    options: tuple[str, ...] = ()
    """Further options of `dpm-edge build` that this engine was built with; a rebuild repeats them."""
    trtexec: str = ""
    """The trtexec command line that builds and times the same plan from the files beside it."""
    resources: dict[str, Any] = field(default_factory=dict)
    """What the builder reports: seconds, plan bytes, device memory per profile, layers."""
    format: int = FORMAT
    """Version of this layout."""

    def __post_init__(self) -> None:
        if self.backend not in BACKENDS:
            raise SpecError(f"expected a backend of {', '.join(BACKENDS)}, got {self.backend!r}")
        if self.precision not in PRECISIONS:
            raise SpecError(f"expected a precision of {', '.join(PRECISIONS)}, got {self.precision!r}")
        for name in ("profiles", "outputs", "options"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        unknown = [name for name in self.outputs if name not in OUTPUTS]
        if unknown:
            raise SpecError(f"expected outputs of {', '.join(OUTPUTS)}, got {unknown[0]!r}")
        if "logits" in self.outputs and self.backend == "torch":
            raise SpecError("expected the outputs feature and mask of backend torch, got logits too")
        if self.profiles and BatchRange.whole(self.profiles) != self.batch:
            whole = BatchRange.whole(self.profiles)
            raise SpecError(f"expected batch {whole}, which covers the profiles, got {self.batch}")

    def needed(self) -> list[str]:
        """Names of the files that opening the engine reads; each has its sha256 in `files`."""
        beside = {"openvino": [f"{Path(self.engine).stem}.bin"], "torch": [f"{Path(self.engine).stem}.json"]}
        stripped = self.gpu is not None and self.gpu.weights == "stripped"
        return [
            self.engine,
            *(beside.get(self.backend, []) if Path(self.engine).suffix in (".xml", ".safetensors") else []),
            GOLDEN,
            *([TYPED] if stripped else []),
            *([PEOPLE] if "logits" in self.outputs else []),
        ]

    def check_names(self) -> None:
        """Refuse names that lead out of the engine's folder, and an engine that was not hashed.

        Raises:
            SpecError: naming the file.
        """
        for name in (*self.files, self.engine):
            if not isinstance(name, str) or name in ("", ".", "..", NAME) or any(c in name for c in "/\\\0"):
                raise SpecError(f"expected names of plain files in the manifest's own folder, got {name!r}")
        if self.engine not in self.files:
            raise SpecError(f"expected a sha256 of every file that is opened, got none of {self.engine}")

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
            EngineError: it is missing, cannot be read, is not JSON, is of a newer format, lacks or invents a field,
                names a file outside the folder or one that was not hashed, or was edited.
        """
        path = folder / NAME
        if not path.is_file():
            got, command = f"{folder}", f"dpm-edge build MODEL -o {folder}"
            if folder.is_file():
                got, command = f"the file {folder}", f"dpm-edge build {folder} -o {folder.with_suffix('')}-engine"
            elif not folder.exists():
                got = f"{folder}, which does not exist"
            raise EngineError(f"expected an engine directory with a {NAME}, got {got}. Build one: {command}")
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise EngineError(
                f"{path} cannot be read ({error.strerror}). Give this user the right to read it"
            ) from error
        try:
            data = json.loads(text)
            if data.get("format", 0) > FORMAT:
                raise EngineError(f"expected {path} of format {FORMAT}, got format {data['format']}. Upgrade dpm-edge")
            seal = data.pop("seal", None)
            edited = seal != _seal(data)
            data["spec"] = ModelSpec.from_dict(data["spec"])
            data["batch"] = strict(BatchRange, data["batch"], "batch")
            data["profiles"] = tuple(strict(BatchRange, one, "profiles") for one in data.get("profiles", ()))
            if data.get("gpu") is not None:
                data["gpu"] = strict(GpuCard, data["gpu"], "gpu")
            manifest = strict(cls, data, "manifest")
        except (ValueError, KeyError, AttributeError, TypeError, SpecError) as error:
            raise EngineError(f"{path} is damaged ({error}). {rebuild_advice(folder)}") from error
        if edited:
            raise EngineError(
                f"{path} was edited after the build (its seal does not fit), so it no longer says what the engine is. "
                f"{rebuild_advice(folder)}"
            )
        try:
            manifest.check_names()
        except SpecError as error:
            raise EngineError(f"{path}: {error}. {rebuild_advice(folder)}") from error
        return manifest

    def check_files(self, folder: Path) -> None:
        """Compare every file's sha256.

        Raises:
            EngineError: a file is missing, cannot be read, is not the one that was built, or is opened without a hash.
        """
        unknown = [name for name in self.needed() if name not in self.files]
        if unknown:
            raise EngineError(
                f"{folder / NAME}: expected a sha256 of every file that is opened, got none of {', '.join(unknown)}. "
                f"{rebuild_advice(folder)}"
            )
        for name, at_build in self.files.items():
            path = folder / name
            if not path.is_file():
                raise EngineError(f"{folder} lacks {name}. {rebuild_advice(folder)}")
            try:
                here = sha256(path)
            except OSError as error:
                raise EngineError(
                    f"{path} cannot be read ({error.strerror}). Give this user the right to read it"
                ) from error
            if here != at_build:
                raise EngineError(f"{path} is not the file that was built (sha256 differs). {rebuild_advice(folder)}")


def _seal(data: dict[str, Any]) -> str:
    """sha256 of the manifest's own content: against mistakes, not against an enemy."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def people(folder: Path) -> tuple[str, ...]:
    """The people of an engine with closed-set logits, in the order of the logits.

    Raises:
        EngineError: people.json is missing or is no list of names.
    """
    path = folder / PEOPLE
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("expected a list of names")
    except (OSError, ValueError) as error:
        raise EngineError(f"{path} is missing or damaged ({error}). {rebuild_advice(folder)}") from error
    return tuple(names)


def rebuild_advice(folder: Path) -> str:
    """The command that builds the engine of `folder` again, with what can be read of its manifest."""
    try:
        data = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        data = {}
    return f"Build it again: {shlex.join(_rebuild_command(folder, data if isinstance(data, dict) else {}))}"


def _rebuild_command(folder: Path, data: dict[str, Any]) -> list[str]:
    """`dpm-edge build` with the options of a manifest, which may be damaged: what is not plausible is left out."""
    model = "model.safetensors" if data.get("backend") == "torch" else PORTABLE
    command = ["dpm-edge", "build", str(folder / model), "-o", str(folder)]
    if data.get("backend") in BACKENDS:
        command += ["--backend", data["backend"]]
    if data.get("precision") in PRECISIONS:
        command += ["--precision", data["precision"]]
    try:
        ranges = [strict(BatchRange, one, "batch") for one in data.get("profiles") or [data["batch"]]]
        command += ["--batch", ",".join(map(str, ranges))]
    except (KeyError, TypeError, SpecError):
        pass
    if data.get("precision") in CALIBRATED:
        command += ["--calibrate", "CROPS"]
    if isinstance(data.get("files"), dict) and CAMERAS in data["files"]:
        command += ["--statistics", str(folder / CAMERAS)]
    options = data.get("options", ())
    return [*command, *(str(one) for one in options)] if isinstance(options, (list, tuple)) else command
