"""Arrays and labels in one safetensors file, written whole: what embeddings and galleries are saved as.

Strings (people, cameras, file names) are kept as JSON in a uint8 tensor beside the arrays; small facts such as the
model's fingerprint stand in the file's metadata. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DpmError
from dpm_edge.files import DISK_FULL, whole_file

FORMAT = "1"
DTYPES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "int32": "I32", "uint32": "U32",
    "int64": "I64", "uint64": "U64", "float16": "F16", "float32": "F32", "float64": "F64",
}  # fmt: skip
"""numpy's dtypes and what safetensors calls them."""
WHAT = {
    "embeddings": "an embeddings file (.safetensors), as `dpm-edge embed` writes",
    "gallery": "a gallery file (.safetensors), as `Gallery.save` writes",
}
"""Kind → what a user calls it."""


def save(
    path: Path, kind: str, arrays: dict[str, NDArray], labels: dict[str, Sequence[Any]], facts: dict[str, str]
) -> None:
    """Replace `path` by one file of this kind ("embeddings", "gallery"); an old file stays when writing fails.

    The arrays are written from where they are; no copy of them is made in memory.

    Raises:
        DpmError: the disk is full or the folder cannot be written.
    """
    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    for name, values in labels.items():
        tensors[f"labels.{name}"] = np.frombuffer(_json(list(values)), np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            _write(file, tensors, {"kind": kind, "format": FORMAT, **facts})
    except OSError as error:
        remedy = "Free some space" if error.errno in DISK_FULL else "Check the folder and its rights"
        kept = f"{path} is as it was before" if path.exists() else "nothing was written"
        raise DpmError(f"expected to save {path}, got {error.strerror}; {kept}. {remedy} and save again") from error


def _write(file: BinaryIO, tensors: dict[str, NDArray], facts: dict[str, str]) -> None:
    """Write the safetensors format: the header's length (uint64), the header (JSON), the bytes of the tensors.

    Source: https://github.com/huggingface/safetensors#format. Wide dtypes go first, so that every tensor is aligned.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": facts}
    at = 0
    for name in order:
        array = tensors[name]
        header[name] = {
            "dtype": DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = _json(header)
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for name in order:
        array = tensors[name]
        file.write(array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data)


def _json(value: Any) -> bytes:
    """JSON in UTF-8; text that UTF-8 cannot hold (a surrogate of a damaged file name) is written with its escapes."""
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value).encode()


def load(
    path: Path, kind: str, error: type[DpmError]
) -> tuple[dict[str, NDArray], dict[str, list[Any]], dict[str, str]]:
    """Read the arrays, labels and facts that `save` wrote.

    Raises:
        error: the file is missing, damaged, a pickle, of a newer format or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise error(f"expected {WHAT.get(kind, f'a {kind} file')}, got {_instead(path)}")
    try:
        with safe_open(path, framework="numpy") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator there)
    except PermissionError as fault:
        raise error(f"expected a file that may be read, got {path}: {fault.strerror}. Change its rights") from fault
    except (SafetensorError, OSError, ValueError) as fault:
        raise error(
            f"expected a {kind} file (.safetensors), got {path}, which is damaged or something else ({fault}). "
            "Write it again"
        ) from fault
    if facts.get("kind") != kind:
        other = facts.get("kind", "other tensors, such as a checkpoint")
        raise error(f"expected {WHAT.get(kind, f'a {kind} file')}, got {path}, which holds {other}")
    if facts.get("format") != FORMAT:
        raise error(f"expected format {FORMAT}, got {path} of format {facts.get('format')}. Upgrade dpm-edge")
    labels = {}
    for name in [n for n in tensors if n.startswith("labels.")]:
        try:
            labels[name.removeprefix("labels.")] = json.loads(tensors.pop(name).tobytes())
        except ValueError as fault:
            raise error(f"expected {name} as JSON, got {path}, which is damaged ({fault}). Write it again") from fault
    return tensors, labels, facts


def _instead(path: Path) -> str:
    """What is at `path` where a file is expected, and what to do."""
    if not path.exists():
        return f"nothing at {path}. Check the path"
    if (path / "manifest.json").is_file():
        return f"{path}, which is an engine directory. Write the file first: dpm-edge embed {path} PICTURES -o FILE"
    if (path / "gallery.json").is_file():
        return f"{path}, which is a gallery in a folder. Use `dpm-edge gallery search`, or the file that embed wrote"
    return f"the folder {path}. Write the file first: dpm-edge embed ENGINE {path} -o FILE.safetensors"


def kind_of(path: Path) -> str | None:
    """Look up what a file says it holds ("embeddings", "gallery"); None where it is no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("kind")
    except (SafetensorError, OSError, ValueError):
        return None
