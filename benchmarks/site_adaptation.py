"""What `dpm-edge adapt` brings on real people: crops of some people without their labels, scores on other people.

    python benchmarks/site_adaptation.py --data FOLDER --name NAME --work WORK [-o FILE] [--validate] [Plan's settings]

FOLDER has Market-1501's layout. The crops are those of PEOPLE training people, put into a folder for each camera; no
name of a person is read by what adapts. Scores are of query/ against bounding_box_test/, whole and covered, before and
after: plain and masked, and both after centring per camera with the means of the gallery's rows. `--validate` scores on
VALIDATION other training people instead, for choosing settings: one picture of each camera asks for the rest.
WORK keeps the links, the covered pictures and the resumable state. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.layouts import LabelledFolder
from dpm_edge.market import query_and_gallery, read_folder
from dpm_edge.model import checkpoint
from dpm_edge.progress import say
from dpm_edge.train.adapt import command
from dpm_edge.train.adapt.check import CENTRED, NOT_CENTRED, score
from dpm_edge.train.adapt.rounds import Plan
from dpm_edge.train.data import decode
from dpm_edge.train.evaluate import occlusion_sets

PEOPLE, VALIDATION = 200, 100
SHARES = (0.2, 0.4, 0.6)
ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks/results/site-adaptation.json", ROOT / "docs/site.md"


def of_people(folder: LabelledFolder, people: np.ndarray) -> LabelledFolder:
    """The pictures of these people."""
    return folder.take(np.isin(folder.people, people))


def split(train: LabelledFolder) -> tuple[np.ndarray, np.ndarray]:
    """PEOPLE people to adapt on and VALIDATION others, both evenly spread over the folder's."""
    everyone = np.unique(train.people[train.people > 0])
    site = everyone[:: max(1, len(everyone) // PEOPLE)][:PEOPLE]
    others = np.setdiff1d(everyone, site)
    return site, others[:: max(1, len(others) // VALIDATION)][:VALIDATION]


def one_of_each_camera(folder: LabelledFolder) -> tuple[LabelledFolder, LabelledFolder]:
    """Queries, one picture of each person and camera, and the rest."""
    _, first = np.unique(np.stack([folder.people, folder.cameras]), axis=1, return_index=True)
    return folder.take(first), folder.take(np.setdiff1d(np.arange(len(folder)), first))


def link(folder: LabelledFolder, into: Path) -> Path:
    """The pictures as links below a folder of their camera: what a site without labels has."""
    for path, camera in zip(folder.paths, folder.cameras):
        place = into / f"camera-{camera}" / path.name
        if not place.is_symlink():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
    return into


def as_table(result: dict[str, Any]) -> str:
    """Markdown: what it was, then Rank-1 / mAP before and after."""
    done, machine = result["adaptation"], result["adaptation"]["machine"]
    minutes = sum(row["seconds"] for row in done["rounds"]) / 60
    lines = [
        f"{result['data']}: {done['crops']} crops of {len(done['cameras'])} cameras, no labels, no tracks; "
        f"{len(done['rounds'])} rounds in {minutes:.0f} minutes on {machine['cores']} cores ({machine['cpu']}, "
        f"{machine['date'][:10]}). Scored on people who are in none of the crops: {result['queries']} queries, "
        f"{result['rows']} rows; covered: mean over shares {', '.join(map(str, result['shares']))} and three kinds of "
        "things in front. Rank-1 / mAP. By `python benchmarks/site_adaptation.py`, from "
        "[site-adaptation.json](../benchmarks/results/site-adaptation.json).",
        "",
        "| queries | metric | space | before | after |",
        "| --- | --- | --- | --- | --- |",
    ]
    for part in ("whole", "covered"):
        for metric in ("plain", "masked"):
            for space in (NOT_CENTRED, CENTRED):
                was, now = (result[when][space][part][metric] for when in ("before", "after"))
                cells = [f"{one['rank1']:.1f} / {one['mAP']:.1f}" for one in (was, now)]
                lines.append(f"| {part} | {metric} | {space} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Adapt, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True, help="what the data is, for the results file")
    parser.add_argument("--checkpoint", type=Path, default=Path("dpm-n"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("-o", "--out", type=Path, help="the results file that ships also goes into docs/site.md")
    for setting in dataclasses.fields(Plan):
        kind = type(setting.default)
        parser.add_argument(f"--{setting.name.replace('_', '-')}", type=kind, default=setting.default)
    said = parser.parse_args()
    plan = Plan(**{setting.name: getattr(said, setting.name) for setting in dataclasses.fields(Plan)})
    train = read_folder(said.data / "bounding_box_train")
    site, validation = split(train)
    crops = link(of_people(train, site), said.work / "crops")
    out = said.work / "adapted"
    result = (
        json.loads((out / "adapt.json").read_text())
        if (out / "adapt.json").is_file()
        else command.run(said.checkpoint, crops, out, plan, force=True)
    )
    before = checkpoint.load_any(said.checkpoint)
    after = checkpoint.load_any(out / "adapted")
    sides = one_of_each_camera(of_people(train, validation)) if said.validate else query_and_gallery(said.data)
    query, gallery = (decode(side, before.spec.preprocessing) for side in sides)
    bodies = decode(of_people(train, site), before.spec.preprocessing)
    cache = said.work.parent / f"covered-{'validation' if said.validate else 'test'}.safetensors"
    covered = occlusion_sets(query, bodies, SHARES, cache=cache)
    written = {
        "data": said.name,
        "scored on": f"{VALIDATION} other training people" if said.validate else "the test people",
        "queries": len(query.names),
        "rows": len(gallery.names),
        "shares": SHARES,
        "before": score(before, query, gallery, covered),
        "after": score(after, query, gallery, covered),
        "adaptation": result,
        "scored by": machine_card(),
    }
    say(json.dumps({key: written[key] for key in ("before", "after")}, indent=1))
    if said.out:
        said.out = said.out.resolve()
        write_whole(said.out, (json.dumps(written, indent=1) + "\n").encode())
        if said.out == RESULTS:
            head, rest = PAGE.read_text().split("<!-- adaptation -->\n")
            tail = rest.split("<!-- /adaptation -->")[1]
            PAGE.write_text(f"{head}<!-- adaptation -->\n{as_table(written)}\n<!-- /adaptation -->{tail}")


if __name__ == "__main__":
    main()
