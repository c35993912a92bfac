"""The timing cache: what it is keyed by, what a damaged one does, and two builds at once."""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest

from dpm_edge import gpu
from dpm_edge.build import PlanOptions
from dpm_edge.build.trt import timing_cache

ORIN = gpu.Gpu(name="Orin", compute_capability="8.7", memory=1, integrated=True, driver="12.6", cuda="12.6")


def entries(path: Path) -> set[str]:
    """What is in a cache file."""
    cache = fake_tensorrt.IBuilderConfig().create_timing_cache(path.read_bytes())
    assert cache is not None
    return cache.fake_entries


def with_entries(*measured: str) -> Any:
    """A builder configuration that has measured these."""
    config = fake_tensorrt.IBuilderConfig()
    config.set_timing_cache(fake_tensorrt.ITimingCache(set(measured)), False)
    return config


def test_the_key_names_gpu_tensorrt_and_driver() -> None:
    keys = {
        timing_cache.key(ORIN, "10.3.0"),
        timing_cache.key(ORIN, "11.4.0.106"),
        timing_cache.key(dataclasses.replace(ORIN, driver="13.0"), "10.3.0"),
        timing_cache.key(dataclasses.replace(ORIN, name="NVIDIA Thor", compute_capability="11.0"), "10.3.0"),
    }
    assert len(keys) == 4 and all("/" not in key and " " not in key for key in keys)


def test_what_one_build_measured_the_next_one_knows(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "orin.timing"
    timing_cache.save(path, with_entries("conv1"))
    config = fake_tensorrt.IBuilderConfig()
    timing_cache.load(path, config)
    assert config.fake_cache is not None and config.fake_cache.fake_entries == {"conv1"}


def test_a_damaged_cache_is_named_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "orin.timing"
    path.write_bytes(b"half a fi")
    config = fake_tensorrt.IBuilderConfig()
    timing_cache.load(path, config)
    assert "orin.timing is damaged" in capsys.readouterr().err
    assert config.fake_cache is not None and config.fake_cache.fake_entries == set()
    timing_cache.save(path, with_entries("conv1"))
    assert entries(path) == {"conv1"}


def _many(path: Path, who: int, rounds: int) -> None:
    """Save one new measurement after the other, as builds that end at the same time do."""
    for number in range(rounds):
        timing_cache.save(path, with_entries(f"{who}.{number}"))


def test_builds_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    """Four processes add twenty measurements each: read, combine and write of one is never torn by another's."""
    path = tmp_path / "orin.timing"
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    workers = [context.Process(target=_many, args=(path, who, 20)) for who in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert entries(path) == {f"{who}.{number}" for who in range(4) for number in range(20)}


def test_the_default_folder_is_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert PlanOptions().timing_cache == tmp_path / "dpm-edge" / "timing"
