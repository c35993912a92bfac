"""Sensors and energy against small trees of files as Linux, a Jetson and Intel's RAPL write them."""

from __future__ import annotations

import re
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpm_edge.bench import machine


def write(root: Path, **files: str) -> None:
    """Files by path, with __ for /."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """NVML is opened once a process; here once a test."""
    machine._nvml.cache_clear()
    yield
    machine._nvml.cache_clear()


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_linux_tree_is_read(tmp_path: Path, no_gpu: None) -> None:
    cpu = "sys__devices__system__cpu"
    for core, khz, slowed in ((0, 1500000, 2), (1, 2000000, 3)):
        write(tmp_path, **{f"{cpu}__cpu{core}__cpufreq__scaling_cur_freq": f"{khz}\n"})
        write(tmp_path, **{f"{cpu}__cpu{core}__thermal_throttle__core_throttle_count": f"{slowed}\n"})
    write(tmp_path, **{f"{cpu}__cpu0__cpufreq__scaling_governor": "powersave\n"})
    write(tmp_path, proc__loadavg="1.25 1 1 1/9 1\n")
    write(tmp_path, sys__class__thermal__thermal_zone0__type="cpu-thermal\n")
    write(tmp_path, sys__class__thermal__thermal_zone0__temp="48500\n")
    found = machine.conditions(tmp_path)
    assert found["cpu_mhz"] == [1500.0, 2000.0] and found["governor"] == "powersave"
    assert found["celsius"] == {"cpu-thermal": 48.5} and found["load_average"] == 1.25
    assert found["times_slowed_by_heat"] == 5


def test_what_cannot_be_read_is_said(tmp_path: Path, no_gpu: None) -> None:
    assert all(str(value).startswith("not readable: ") for value in machine.conditions(tmp_path).values())
    write(tmp_path, proc__cpuinfo="processor : 0\ncpu MHz\t\t: 2596.136\n")
    assert machine.conditions(tmp_path)["cpu_mhz"] == [2596.1]


def test_shares_of_the_cores_time(tmp_path: Path) -> None:
    write(tmp_path, proc__stat="cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 …\n")
    before = machine.cpu_times(tmp_path)
    write(tmp_path, proc__stat="cpu  150 0 110 920 10 0 0 10 0 0\ncpu0 …\n")
    assert machine.between(before, machine.cpu_times(tmp_path)) == {"cores_working": 0.3, "cores_stolen": 0.05}
    assert machine.between(None, before)["cores_stolen"].startswith("not readable")


def jetson(root: Path, rails: dict[int, tuple[str, int, int]]) -> None:
    """An INA3221 with channels: (label, mV, mA)."""
    folder = "sys__bus__i2c__drivers__ina3221__1-0040__hwmon__hwmon4"
    for channel, (label, millivolts, milliamperes) in rails.items():
        write(root, **{f"{folder}__in{channel}_label": label + "\n", f"{folder}__in{channel}_input": str(millivolts)})
        write(root, **{f"{folder}__curr{channel}_input": str(milliamperes)})


def test_jetson_with_an_input_rail_counts_that_one(tmp_path: Path, no_gpu: None) -> None:
    jetson(tmp_path, {1: ("VDD_IN", 5000, 2000), 2: ("VDD_CPU_GPU_CV", 5000, 800), 3: ("VDD_SOC", 5000, 300)})
    assert [(rail.name, rail.watts()) for rail in machine.find_rails(tmp_path)] == [("VDD_IN", pytest.approx(10.0))]
    meter = machine.find_meter(tmp_path)
    assert not isinstance(meter, str) and meter.name == "board, rails VDD_IN"
    start = time.perf_counter()
    meter.start()
    time.sleep(0.1)
    joules = meter.stop()
    assert 1.0 <= joules <= 10.0 * (time.perf_counter() - start)


def test_jetson_without_an_input_rail_adds_the_named_ones(tmp_path: Path) -> None:
    jetson(tmp_path, {1: ("VDD_GPU_SOC", 19000, 500), 2: ("VDD_CPU_CV", 19000, 100), 3: ("NC", 19000, 7)})
    rails = machine.find_rails(tmp_path)
    assert [rail.name for rail in rails] == ["VDD_GPU_SOC", "VDD_CPU_CV"]
    assert sum(rail.watts() for rail in rails) == pytest.approx(19 * 0.6)


def test_sampled_power_is_added_up_as_trapezoids(monkeypatch: pytest.MonkeyPatch) -> None:
    times, watts = iter([0.0, 10.0]), iter([4.0, 8.0])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(times))
    meter = machine.SampledPower("ramp", lambda: next(watts), every=60)
    meter.start()
    assert meter.stop() == pytest.approx(60.0)


def test_rapl_goes_on_where_its_counter_starts_again(tmp_path: Path, no_gpu: None) -> None:
    package = "sys__class__powercap__intel-rapl:0"
    write(tmp_path, **{f"{package}__energy_uj": "9000000", f"{package}__max_energy_range_uj": "10000000"})
    meter = machine.find_meter(tmp_path)
    assert not isinstance(meter, str)
    meter.start()
    write(tmp_path, **{f"{package}__energy_uj": "2000000"})
    assert meter.stop() == pytest.approx(3.0)


def test_machine_without_any_meter_says_so(tmp_path: Path, no_gpu: None) -> None:
    found = machine.find_meter(tmp_path)
    assert isinstance(found, str) and found.startswith("not reported by this machine")


def test_gpu_is_asked_through_nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A library of the same names as NVIDIA's; this GPU does not report its memory clock."""

    class NVMLError(Exception):
        pass

    def clock(gpu: str, which: int) -> int:
        if which == 2:
            raise NVMLError("Not Supported")
        return 1980

    energy_mj = iter([1000, 1000, 4500])
    fake = types.SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: f"gpu {index}",
        nvmlDeviceGetName=lambda gpu: "A GPU",
        nvmlDeviceGetClockInfo=clock,
        nvmlDeviceGetTemperature=lambda gpu, sensor: 41,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: 4,
        nvmlDeviceGetTotalEnergyConsumption=lambda gpu: next(energy_mj),
        nvmlDeviceGetComputeRunningProcesses=lambda gpu: [types.SimpleNamespace(pid=1, usedGpuMemory=9)],
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert machine.gpu_state() == {
        "name": "A GPU",
        "sm_mhz": 1980,
        "memory_mhz": None,
        "celsius": 41,
        "clock_event_reasons": 4,
    }
    assert machine.gpu_memory_of_this_process() is None
    meter = machine.find_meter(tmp_path)
    assert not isinstance(meter, str) and meter.name.startswith("GPU")
    meter.start()
    assert meter.stop() == pytest.approx(3.5)


def test_names_that_nvml_is_asked_for_exist() -> None:
    """Against NVIDIA's own bindings."""
    pynvml = pytest.importorskip("pynvml", reason="nvidia-ml-py, of the extra `bench`, is not installed")
    asked = set(re.findall(r"\b(?:nvml[A-Z]|NVML)\w+", Path(machine.__file__).read_text()))
    assert len(asked) >= 10
    assert [name for name in sorted(asked) if not hasattr(pynvml, name)] == []
