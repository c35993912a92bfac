"""Put what was measured into README.md beside this file:  python benchmarks/gpu/report.py RESULTS.json

For each call: our fastest way, its share of the measured roof, and each rival's time over ours.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from roofline import RIVALS


def kind(section: str, row: dict[str, Any]) -> str:
    """What is compared with what: one line of the table each."""
    shape = row["shape"]
    size = f"B={shape[0]}" if isinstance(shape, list) else str(shape)
    name = row["name"]
    if section == "masked_distance":
        k = "top-128, " if "top-128" in name else "top-10, " if "top" in name else ""
        return f"masked_distance, {k}{size}, N=1M, D=768, {row['dtype']}"
    return f"{name.split(':')[0]}, {size}, {row['dtype']}"


def table(report: dict[str, Any]) -> str:
    """Markdown, one row a call."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for section, rows in report["timings"].items():
        for row in rows:
            if row.get("ms"):
                groups.setdefault(kind(section, row), []).append(row)
    lines = ["| call | ours, ms | of the copy roof | of the matrix roof | rivals, times slower |", "|" + " --- |" * 5]
    for name, rows in groups.items():
        rivals = {r["name"]: r["ms"] for r in rows if any(word in r["name"] for word in RIVALS)}
        mine = [r for r in rows if r["name"] not in rivals]
        if not mine:
            continue
        best = min(mine, key=lambda r: r["ms"])
        how = "Winograd" if "Winograd" in best["name"] else ""
        shares = [f"{100 * best[k]:.0f} %" if best.get(k) else "" for k in ("of_copy", "of_matrix")]
        slower = ", ".join(f"{n.split(': ')[-1]} {ms / best['ms']:.1f}" for n, ms in rivals.items())
        lines.append(f"| {name} | {best['ms']:.4g} {how} | {shares[0]} | {shares[1]} | {slower} |")
    return "\n".join(lines)


if __name__ == "__main__":
    results = Path(sys.argv[1])
    report = json.loads(results.read_text())
    card, checks = report["card"], [row for rows in report["check"].values() for row in rows]
    copy, matrix = report["ceilings"]["copy_bytes_per_s"] / 1e12, report["ceilings"]["bf16_flop_per_s"] / 1e12
    head = (
        f"{card['device']}, torch {card['torch']}, Triton {card['triton']}, {card['date'][:10]}; copy {copy:.2f} TB/s, "
        f"bf16 {matrix:.0f} TFLOP/s, both measured. Checks against float64: {sum(c['ok'] for c in checks)} of "
        f"{len(checks)} right. From `../results/{results.name}`."
    )
    readme = Path(__file__).with_name("README.md")
    before, rest = readme.read_text(encoding="utf-8").split("<!-- measured -->\n", 1)
    after = rest.split("<!-- /measured -->", 1)[1]
    text = f"{before}<!-- measured -->\n{head}\n\n{table(report)}\n<!-- /measured -->{after}"
    readme.write_text(text, encoding="utf-8")
