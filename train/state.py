"""The state to resume from, and the log: what a run leaves in its folder.

config.json · log.jsonl · last.safetensors/json · best.safetensors/json · resume.pt · tensorboard/ · results.json
"""

from __future__ import annotations

import io
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from dpm_edge.errors import CheckpointError, DataError
from dpm_edge.files import write_whole
from dpm_edge.train.config import Config

RESUME = "resume.pt"
MAY_CHANGE = ("device", "log_every", "save_every")
"""Fields that a resumed run may have otherwise: they change no loss."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write the state whole: tensors, numbers and strings only, so that it loads with weights_only=True.

    Raises DataError when the disk is full; the previous state stays as it was.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    try:
        write_whole(path, buffer.getvalue())
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror}); {buffer.tell() / 1e6:.0f} MB are needed. The state of the "
            "last saved epoch is untouched: free some room and run the same command to resume"
        ) from error


def load(path: Path, config: Config) -> dict[str, Any]:
    """The saved state. Raises CheckpointError where it is damaged or of another configuration; fields are named."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is damaged ({str(error).splitlines()[0]}); delete it to start over") from error
    theirs, ours = json.loads(state["config"]), config.to_dict()
    changed = [n for n in _flat(ours) if _flat(ours)[n] != _flat(theirs).get(n) and n not in MAY_CHANGE]
    if changed:
        came = ", ".join(f"{n}={_flat(ours)[n]!r} (was {_flat(theirs).get(n)!r})" for n in changed[:5])
        raise CheckpointError(
            f"expected the settings that {path} was begun with (recipe {theirs['recipe']!r}), got {came}. Give "
            "another --out to start anew, or the same settings to resume"
        )
    return state


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


class RunLog:
    """log.jsonl, one object a line, and the same numbers for TensorBoard."""

    def __init__(self, out: Path, config: Config, *, keep_steps: int, tensorboard: bool = True) -> None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
        self.path = out / "log.jsonl"
        kept = []
        if keep_steps and self.path.is_file():
            lines = (line for line in self.path.read_text().splitlines() if line.endswith("}"))
            kept = [line for line in lines if json.loads(line)["step"] <= keep_steps]
        self.path.write_text("".join(line + "\n" for line in kept))
        self.file = self.path.open("a")
        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=keep_steps or None)
        self.begin = time.perf_counter()

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line: {"kind", "step", "seconds", …values}; numbers go to TensorBoard as kind/name."""
        seconds = round(time.perf_counter() - self.begin, 3)
        self.file.write(json.dumps({"kind": kind, "step": step, "seconds": seconds, **values}) + "\n")
        self.file.flush()
        if self.board is not None:
            for name, value in _flat(values).items():
                if isinstance(value, (int, float)) and math.isfinite(value):
                    self.board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush both."""
        self.file.close()
        if self.board is not None:
            self.board.close()
