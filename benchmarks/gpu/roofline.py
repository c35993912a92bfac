"""One picture: every timed kernel against the measured roofs of its device.

python benchmarks/gpu/roofline.py RESULTS.json      draws RESULTS-roofline.png beside it
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RIVALS = ("torch", "two products", "materialised", "loop", "compiled", "roi_align")
"""A row is a rival's if its name holds one of these."""
MARKERS = {
    "masked_distance": "o", "gallery": "*", "mask_head": "s", "crop": "D", "network": "^", "engine": "P",
    "train_step": "v",
}  # fmt: skip


def draw(report: dict[str, Any], path: Path) -> None:
    """Arithmetic intensity (flop per byte) against achieved rate, with the measured copy and matrix roofs.

    A method that needs fewer operations than the direct one (Winograd) is drawn by the direct one's and may lie above.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    roofs = report["ceilings"]
    figure, axes = plt.subplots(figsize=(10, 6.5), layout="constrained")
    intensity = np.logspace(-0.5, 4, 200)
    axes.loglog(intensity, np.minimum(intensity * roofs["copy_bytes_per_s"], roofs["bf16_flop_per_s"]), "k-", lw=1)
    labelled: list[tuple[float, float]] = []
    for section, rows in report["timings"].items():
        for row in rows:
            if not (row.get("ms") and row.get("bytes") and row.get("flops")):
                continue
            at = (row["flops"] / row["bytes"], row["flops"] / row["ms"] * 1e3)
            ours = not any(rival in row["name"] for rival in RIVALS)
            axes.plot(*at, MARKERS[section], color="tab:blue" if ours else "0.6", ms=8 if ours else 5, alpha=0.8)
            near = any(abs(np.log10(at[0] / x)) < 0.25 and abs(np.log10(at[1] / y)) < 0.09 for x, y in labelled)
            if ours and not near:
                shape = row["shape"]
                size = f"B={shape[0]}" if isinstance(shape, list) else str(shape).split(" d=")[0]
                name = row["name"].replace("mask_head ", "").replace("ours, ", "").replace(" graph", "")
                axes.annotate(f"{name}, {size}", at, fontsize=7, xytext=(7, -3), textcoords="offset points")
                labelled.append(at)
    axes.set_xlabel("flop per byte that must move")
    axes.set_ylabel("flop per second")
    axes.set_title(
        f"{report['card']['device']}: ours (blue) and rivals (grey) under the measured copy and matrix roofs"
    )
    axes.grid(which="both", alpha=0.2)
    axes.set_xlim(0.6, 3e4)
    figure.savefig(path, dpi=140)
    plt.close(figure)


if __name__ == "__main__":
    results = Path(sys.argv[1])
    draw(json.loads(results.read_text()), results.with_name(f"{results.stem}-roofline.png"))
