"""Run every GPU check and timing, write one JSON and one roofline picture. Started by `benchmarks/gpu/run`.

Each `bench_*.py` beside this file offers check(device, quick), timings(device, quick) and, where tiles are still being
chosen, sweep(device). Correctness comes first: a wrong kernel's timings are marked, not hidden. Results are written
after every section, so that a run that is cut off keeps what it has. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = ("check", "timings", "sweep")
SECTIONS = ("masked_distance", "gallery", "mask_head", "crop", "network", "engine", "train_step")


def device_card(device: str) -> dict[str, Any]:
    """The device and the versions that a result depends on."""
    import torch
    import triton

    card: dict[str, Any] = {
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": "CPU, Triton interpreter",
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        smi = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit", "--format=csv,noheader"]
        state = subprocess.run(smi, capture_output=True, text=True).stdout.strip()
        card |= {
            "device": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "driver, sm clock, memory clock, power limit": state,
        }
    return card


def ceilings(device: str) -> dict[str, float]:
    """Measured copy bandwidth (bytes read plus written per second) and matrix rates (flop/s)."""
    import timing
    import torch

    return {
        "copy_bytes_per_s": timing.copy_bandwidth(device),
        "fp16_flop_per_s": timing.matrix_rate(device, torch.float16),
        "bf16_flop_per_s": timing.matrix_rate(device, torch.bfloat16),
    }


def with_fractions(row: dict[str, Any], ceiling: dict[str, float]) -> dict[str, Any]:
    """A timing row with its share of the measured ceilings."""
    seconds = row.get("ms", 0) / 1e3
    if seconds > 0 and row.get("bytes"):
        row["of_copy"] = round(row["bytes"] / seconds / ceiling["copy_bytes_per_s"], 4)
    rate = ceiling.get(f"{str(row.get('dtype', '')).replace('float', 'fp').replace('bfp', 'bf')}_flop_per_s")
    if seconds > 0 and row.get("flops") and rate:
        row["of_matrix"] = round(row["flops"] / seconds / rate, 4)
    return row


def run_section(name: str, part: str, device: str, quick: bool, ceiling: dict[str, float]) -> list[dict[str, Any]]:
    """One part of one bench module; an exception becomes a row, so that the other sections still run."""
    start = time.perf_counter()
    try:
        module = importlib.import_module(f"bench_{name}")
        function = getattr(module, part, None)
        if function is None:
            return []
        rows = function(device) if part == "sweep" else function(device, quick)
        rows = rows if part == "check" else [with_fractions(r, ceiling) for r in rows]
    except Exception:
        rows = [{"name": f"{name}.{part}", "ok": False, "exception": _traceback()}]
    print(f"== {name}.{part}: {len(rows)} rows in {time.perf_counter() - start:.1f} s", flush=True)
    for row in rows:
        if part != "check" or not row.get("ok", True):
            print("  ", json.dumps(row) if "exception" not in row else row["exception"], flush=True)
    return rows


def main() -> int:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE.parent / "results")
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--parts", nargs="*", choices=PARTS, default=["check", "timings"], help="sweep: tables of tiles"
    )
    parser.add_argument("--merge", action="store_true", help="keep the other parts of an earlier result in --out")
    args = parser.parse_args()
    sys.path.insert(0, str(HERE))

    if subprocess.run(["nvidia-smi"], capture_output=True).returncode if _has_smi() else True:
        os.environ.setdefault("TRITON_INTERPRET", "1")
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    quick = device == "cpu"
    args.out.mkdir(parents=True, exist_ok=True)
    card = device_card(device)
    label = card["device"].lower().replace(",", "").replace(" ", "-") if device == "cuda" else "interpreter"
    path = args.out / f"gpu-{label}.json"
    report: dict[str, Any] = {"command": "benchmarks/gpu/run", "card": card, "ceilings": ceilings(device)}
    print(json.dumps(report, indent=1), flush=True)
    if args.merge and path.is_file():
        earlier = json.loads(path.read_text())
        report = {**{part: earlier[part] for part in PARTS if part in earlier}, **report}
    for part in (p for p in PARTS if p in args.parts):
        for name in args.only:
            rows = run_section(name, part, device, quick, report["ceilings"])
            report.setdefault(part, {})[name] = rows
            path.write_text(json.dumps(report, indent=1) + "\n")
    checks = [row for rows in report.get("check", {}).values() for row in rows]
    wrong = [row for row in checks if not row.get("ok", False)]
    broken = [r for p in ("timings", "sweep") for rows in report.get(p, {}).values() for r in rows if "exception" in r]
    if report.get("timings"):
        try:
            import roofline

            roofline.draw(report, args.out / f"gpu-{label}-roofline.png")
        except Exception:
            traceback.print_exc()
    print(json.dumps({"results": path.name, "checks": len(checks), "wrong": len(wrong), "broken_timings": len(broken)}))
    return 1 if wrong or broken else 0


def _traceback() -> str:
    """The exception in hand, without the folders of the machine that it came on."""
    root = Path(__file__).resolve().parents[2]
    return traceback.format_exc().replace(f"{root}/", "").replace(sys.executable, "python3")


def _has_smi() -> bool:
    import shutil

    return shutil.which("nvidia-smi") is not None


if __name__ == "__main__":
    sys.exit(main())
