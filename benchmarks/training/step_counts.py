"""How many operations a training step hands to the device, and how often the host waits for an answer.

An operation is a call that torch's dispatcher hands on, in the forward, the backward or the update; calls that only
look at a tensor in another way (views) launch nothing and are counted apart. Every one costs the host some
microseconds, whatever the device: where there are thousands, the device waits for the host.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim")
"""Operations that read something back, so that a host waits for its GPU."""
CONSTANT = "aten::lift_fresh"
"""A tensor made from Python numbers: on a GPU a copy that waits."""


class Counted(TorchDispatchMode):
    """Counts what is dispatched while it is entered: `operations` by name, `views`."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.views = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, returns = func._schema.name, func._schema.returns
        indexed = name in ("aten::index", "aten::index_put", "aten::index_put_")
        if indexed and any(t is not None and t.dtype == torch.bool for t in args[1]):
            name = "aten::nonzero"  # what indexing by a bool tensor comes to
        if name != CONSTANT and any(r.alias_info is not None and not r.alias_info.is_write for r in returns):
            self.views += 1
        elif not name.startswith("profiler::"):
            self.operations[name] += 1
        return func(*args, **(kwargs or {}))

    def summary(self) -> dict[str, int]:
        """operations, views, and waits: reads and constants that make a host wait for its GPU."""
        waits = sum(self.operations[name] for name in (*WAITS, CONSTANT))
        return {"operations": sum(self.operations.values()), "views": self.views, "waits": waits}


def counts(what: Callable[[], object]) -> dict[str, int]:
    """What one call of `what` dispatches; on a GPU also `device_waits`, which the driver's wrapper itself reports."""
    with Counted() as counted, _device_waits() as waited:
        what()
    found = counted.summary()
    return {**found, "device_waits": len(waited)} if torch.cuda.is_available() else found


def launches(what: Callable[[], object]) -> dict[str, int]:
    """What one call of `what` asks of a GPU, from the profiler: kernel and graph launches, copies, waits; it also sees
    inside compiled code. Empty without a GPU, or where the profiler may not look."""
    if not torch.cuda.is_available():
        return {}
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        what()
        torch.cuda.synchronize()
    calls = Counter(event.name for event in seen.events())
    kinds = {"kernels": "LaunchKernel", "graphs": "GraphLaunch", "copies": "Memcpy", "waits": "Synchronize"}
    return {
        kind: sum(n for name, n in calls.items() if part in name and name.startswith("cu"))
        for kind, part in kinds.items()
    }


@contextmanager
def _device_waits() -> Iterator[list[Any]]:
    """The warnings that torch gives where a call waits for the GPU."""
    if not torch.cuda.is_available():
        yield []
        return
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        waited: list[Any] = []
        try:
            yield waited
        finally:
            torch.cuda.set_sync_debug_mode(before)
            waited += [w for w in caught if "synchroniz" in str(w.message)]
