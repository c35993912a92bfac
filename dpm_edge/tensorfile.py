"""Arrays and labels in one safetensors file, written whole: what embeddings and galleries are saved as.

Strings (people, cameras, file names) are kept as JSON in a uint8 tensor beside the arrays; small facts such as the
model's fingerprint stand in the file's metadata. Nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DpmError
from dpm_edge.files import write_whole

FORMAT = "1"


def save(
    path: Path, kind: str, arrays: dict[str, NDArray], labels: dict[str, Sequence[Any]], facts: dict[str, str]
) -> None:
    """Replace `path` by one file of this kind ("embeddings", "gallery"); an old file stays when writing fails.

    Raises:
        DpmError: the disk is full or the folder cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    for name, values in labels.items():
        text = json.dumps(list(values), ensure_ascii=False).encode()
        tensors[f"labels.{name}"] = np.frombuffer(text, np.uint8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, to_bytes(tensors, metadata={"kind": kind, "format": FORMAT, **facts}))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "Free some space and save again" if full else "Check the folder and its rights"
        kept = f"{path} is as it was before" if path.exists() else "nothing was written"
        raise DpmError(f"{path} could not be saved ({error.strerror}); {kept}. {remedy}") from error


def load(
    path: Path, kind: str, error: type[DpmError]
) -> tuple[dict[str, NDArray], dict[str, list[Any]], dict[str, str]]:
    """The arrays, labels and facts that `save` wrote.

    Raises:
        error: the file is missing, damaged, a pickle, of a newer format or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise error(f"{path} does not exist; a {kind} file (.safetensors) is wanted")
    try:
        with safe_open(path, framework="numpy") as file:
            facts = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator there)
    except (SafetensorError, OSError, ValueError) as fault:
        raise error(f"{path} is no safetensors file, or is damaged ({fault}). Write it again") from fault
    if facts.get("kind") != kind:
        raise error(f"{path} holds {facts.get('kind', 'something else')!r}; a {kind} file is wanted")
    if facts.get("format") != FORMAT:
        raise error(f"{path} is of format {facts.get('format')}; {FORMAT} is read here. Upgrade dpm-edge")
    labels = {}
    for name in [n for n in tensors if n.startswith("labels.")]:
        try:
            labels[name.removeprefix("labels.")] = json.loads(tensors.pop(name).tobytes())
        except ValueError as fault:
            raise error(f"{path} is damaged: its {name} are not JSON ({fault}). Write it again") from fault
    return tensors, labels, facts


def kind_of(path: Path) -> str | None:
    """What a file says it holds ("embeddings", "gallery"); None where it is no such file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("kind")
    except (SafetensorError, OSError, ValueError):
        return None
