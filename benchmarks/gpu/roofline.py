"""One picture: every timed kernel against the measured roofs of its device."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(report: dict[str, Any], path: Path) -> None:
    """Arithmetic intensity (flop per byte) against achieved rate, with the measured copy and matrix roofs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    roofs = report["ceilings"]
    rows = [
        (section, r)
        for section, part in report["timings"].items()
        for r in part
        if r.get("ms") and r.get("bytes") and r.get("flops")
    ]
    figure, axes = plt.subplots(figsize=(10, 6), layout="constrained")
    intensity = np.logspace(-1, 4, 200)
    top = roofs["bf16_flop_per_s"]
    axes.loglog(intensity, np.minimum(intensity * roofs["copy_bytes_per_s"], top), "k-", lw=1)
    markers = dict(zip(report["timings"], "osD^v"))
    for section, row in rows:
        ours = "rival" not in row["name"] and not row.get("rival")
        axes.plot(
            row["flops"] / row["bytes"],
            row["flops"] / row["ms"] * 1e3,
            markers[section],
            color="tab:blue" if ours else "tab:gray",
            ms=8 if ours else 5,
            alpha=0.9 if ours else 0.5,
        )
        if ours:
            where = (row["flops"] / row["bytes"], row["flops"] / row["ms"] * 1e3)
            axes.annotate(row["name"], where, fontsize=6, xytext=(4, -2), textcoords="offset points")
    axes.set_xlabel("flop per byte that must move")
    axes.set_ylabel("flop per second")
    axes.set_title(f"{report['card']['device']}: ours (blue) and rivals (grey) under the measured roofs")
    axes.grid(which="both", alpha=0.2)
    figure.savefig(path, dpi=140)
    plt.close(figure)
