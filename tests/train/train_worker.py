"""A training run of the toy world in its own process: train_worker.py DATA OUT [field=value …]."""

import sys
from pathlib import Path

import torch
from toy_world import SMALL, TINY

from dpm_edge import spec
from dpm_edge.train.config import override
from dpm_edge.train.loop import fit
from dpm_edge.train.recipes import recipe
from dpm_edge.train.run import prepare

if __name__ == "__main__":
    torch.set_num_threads(1)
    spec.PRESETS["tiny"] = TINY
    data, out, *words = sys.argv[1:]
    fit(prepare(override(recipe("market_tiny"), SMALL + words), Path(data), Path(out), quiet=True))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
