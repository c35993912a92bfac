"""The table of the models that ship, from a ladder's results: into the package, the README and docs/training.md.

    python benchmarks/training/ladder.py --data MARKET --covered covered.safetensors \\
        --out benchmarks/results/models-market.json dpm-n=dpm-n dpm-t=dpm-t osnet-x0.25=osnet.onnx histogram
    python benchmarks/training/model_table.py

Writes dpm_edge/assets/models.json, which `dpm-edge models` shows, and the table between the marks `<!-- models -->` and
`<!-- /models -->` of both pages.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dpm_edge import shipped
from dpm_edge.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results/models-market.json"
PAGES = (ROOT / "README.md", ROOT / "docs/training.md")
MARKS = "<!-- models -->\n", "<!-- /models -->"
NAMES = {
    "dpm-n": "**dpm-n**, the default",
    "dpm-t": "dpm-t",
    "osnet-x0.25": "OSNet x0.25, trained on real people (MSMT17)",
    "histogram": "colours of six stripes, nothing learned",
}


def measured(row: dict[str, Any]) -> dict[str, Any]:
    """What the package keeps of one row."""
    return {
        "whole": {m: row[m]["whole"] for m in ("plain", "masked")},
        "covered": {m: row[m]["covered"] for m in ("plain", "masked")},
        "by_share": {m: {s: row[m][s] for s in ("0.2", "0.4", "0.6")} for m in ("plain", "masked")},
        "rank1": row["rank1_whole"],
        "visibility": row["visibility"],
        "crops_per_second": row["crops_per_cpu_second"],
    }


def table(found: dict[str, Any]) -> str:
    """The Markdown table and what it is of."""
    rows = found["rows"]
    lines = [
        "| mAP in percent, plain / masked | whole | 20 % covered | 40 % | 60 % | crops/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in rows.items():
        ours = name in shipped.MODELS

        def cell(part: str, row: dict[str, Any] = row, ours: bool = ours) -> str:
            plain = f"{row['plain'][part]:.1f}"
            return f"{plain} / {row['masked'][part]:.1f}" if ours else plain

        cells = [cell(part) for part in ("whole", "0.2", "0.4", "0.6")]
        lines.append(f"| {NAMES[name]} | {' | '.join(cells)} | {row['crops_per_cpu_second']:.0f} |")
    card = found["machine"]
    lines.append("")
    lines.append(
        f"{found['queries']} queries and {found['gallery']} pictures of 100 people of Market-1501, our own split, whom "
        "no model saw in training; covered by textures, drawn things and other people. Crops a second: OpenVINO "
        f"float32, one thread, batch 16, {card['cpu']}, {card['date'][:10]}. From "
        "[models-market.json](BENCHMARKS/results/models-market.json)."
    )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write all three files."""
    found = json.loads(RESULTS.read_text())
    card = {
        "machine": found["machine"]["cpu"],
        "date": found["machine"]["date"][:10],
        "models": {name: measured(found["rows"][name]) for name in shipped.MODELS},
    }
    write_whole(shipped.ASSETS / "models.json", (json.dumps(card, indent=1) + "\n").encode())
    for page in PAGES:
        text = page.read_text()
        before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
        made = table(found).replace("BENCHMARKS", "benchmarks" if page.parent == ROOT else "../benchmarks")
        write_whole(page, f"{before}{MARKS[0]}{made}{MARKS[1]}{after}".encode())


if __name__ == "__main__":
    main()
