"""What `dpm-edge adapt` brings on real people: crops of some people without their labels, scores on other people.

    python benchmarks/site_adaptation.py --data FOLDER --name NAME --work WORK [-o FILE] [--validate] [Plan's settings]

FOLDER has Market-1501's layout. The crops are those of PEOPLE training people, put into a folder for each camera; no
name of a person is read by what adapts. Scores are of query/ against bounding_box_test/, whole and covered, before and
after: plain and masked, and both after centring per camera with the means of the gallery's rows. `--validate` scores on
VALIDATION other training people instead, for choosing settings: one picture of each camera asks for the rest.
The people whom covered queries stand behind are those of the crops; the share that is behind people is scored with
bodies of training people of no crop, too ("behind people of no crop").
WORK keeps the links, the covered pictures and the resumable state. Stopped, the same command goes on.
`--row` collects several settings in one file. `--before` scores the model as it is alone. `--labelled` trains with the
people's names, as an upper reference, and adds it to a results file that is there: the same crops, rounds, losses and
settings, with each person's crops as a group in place of those that adaptation finds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.layouts import LabelledFolder
from dpm_edge.market import query_and_gallery, read_folder
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.progress import say
from dpm_edge.train.adapt import command, rounds
from dpm_edge.train.adapt.check import CENTRED, NOT_CENTRED, score
from dpm_edge.train.adapt.crops import Crops, read_crops
from dpm_edge.train.adapt.rounds import Plan
from dpm_edge.train.data import Pictures, decode
from dpm_edge.train.evaluate import OCCLUDER_SEED, covered, occlusion_sets

PEOPLE, VALIDATION = 200, 100
SHARES = (0.2, 0.4, 0.6)
STRANGERS = 500
"""Pictures of people of no crop that bodies are cut from, about."""
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


def behind(query: Pictures, strangers: Pictures) -> dict[tuple[str, float], Pictures]:
    """The queries behind `strangers`, by kind and share."""
    bodies = strangers.pixels[:: max(1, len(strangers) // STRANGERS)].permute(0, 2, 3, 1).contiguous().numpy()
    return {("body", share): covered(query, "body", share, bodies, OCCLUDER_SEED) for share in SHARES}


def link(folder: LabelledFolder, into: Path) -> Path:
    """The pictures as links below a folder of their camera: what a site without labels has."""
    for path, camera in zip(folder.paths, folder.cameras):
        place = into / f"camera-{camera}" / path.name
        if not place.is_symlink():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path.resolve())
    return into


def with_names(net: DPM, crops: Crops, plan: Plan, *, quiet: bool = True) -> tuple[NDArray, NDArray, Tensor]:
    """As `rounds.pseudo_labels`, with a group for each person that the files' names tell."""
    features = rounds.features_of(net, crops.pictures.pixels, what="embed the crops", quiet=quiet)
    known = rounds.statistics(net, features, crops.names_of_cameras())
    people = [name.split("_")[0] for name in crops.pictures.names]
    groups = np.unique(people, return_inverse=True)[1].astype(np.int64)
    means = torch.from_numpy(known.means(crops.camera_names).astype(np.float32))
    return groups, known.centre(features, crops.names_of_cameras()), means


def train_with_names(source: Path, folder: Path, plan: Plan, out: Path) -> tuple[DPM, dict[str, Any]]:
    """The checkpoint trained with names on the crops that adaptation learned from, and how that went."""
    net = checkpoint.load_any(source)
    learning, _ = command.hold_out(read_crops(folder, net.spec.preprocessing), plan.seed)
    rounds.pseudo_labels = with_names  # type: ignore[assignment]
    trained, history = rounds.adapt(net, learning, plan, out)
    return trained, {"crops": len(learning), "threads": torch.get_num_threads(), "rounds": history}


def as_table(result: dict[str, Any]) -> str:
    """Markdown: what it was, then Rank-1 / mAP before and after."""
    done, machine = result["adaptation"], result["adaptation"]["machine"]
    minutes = sum(row["seconds"] for row in done["rounds"]) / 60
    lines = [
        f"{result['data']}: {done['crops']} crops of {len(done['cameras'])} cameras, no labels, no tracks; "
        f"{len(done['rounds'])} rounds in {minutes:.0f} minutes on {machine['cores']} cores ({machine['cpu']}, "
        f"{machine['date'][:10]}). Scored on people who are in none of the crops: {result['queries']} queries, "
        f"{result['rows']} rows; covered: mean over shares {', '.join(map(str, result['shares']))} and three kinds of "
        "things in front: textures, drawn things and bodies. Rank-1 / mAP. By `python benchmarks/site_adaptation.py`, "
        "from [site-adaptation.json](../benchmarks/results/site-adaptation.json).",
        "",
    ]
    columns = {"before": result["before"], "after": result["after"]}
    if "labelled" in result:
        columns["with the people's names"] = result["labelled"]["scores"]
        spent = sum(row["seconds"] for row in result["labelled"]["rounds"]) / 60
        steps = [sum(row["steps"] for row in one["rounds"]) for one in (done, result["labelled"])]
        lines[-1:] = [
            f"The last column is an upper reference: the same {len(done['rounds'])} rounds on the same crops, told who "
            f"is who; {steps[1]} steps (adaptation: {steps[0]}) in {spent:.0f} minutes on "
            f"{result['labelled']['threads']} core.",
            "",
        ]
    lines += [
        f"| queries | metric | space | {' | '.join(columns)} |",
        "| --- | --- | --- " + "| --- " * len(columns) + "|",
    ]
    for part in ("whole", "covered", "covered by body"):
        for metric in ("plain", "masked"):
            for space in (NOT_CENTRED, CENTRED):
                scored = [one[space][part][metric] for one in columns.values()]
                cells = [f"{one['rank1']:.1f} / {one['mAP']:.1f}" for one in scored]
                lines.append(f"| {part} | {metric} | {space} | {' | '.join(cells)} |")
    return "\n".join(lines)


def adapted(source: Path, crops: Path, plan: Plan, out: Path) -> tuple[DPM, dict[str, Any]]:
    """The adapted checkpoint and its adapt.json; what is in `out` already is not made again."""
    done = out / "adapt.json"
    told = json.loads(done.read_text()) if done.is_file() else command.run(source, crops, out, plan, force=True)
    return checkpoint.load_any(out / "adapted"), told


def save(result: dict[str, Any], out: Path, row: str | None = None) -> None:
    """Write a results file, or its row of that name; the one that ships also as a table on the page."""
    if row:
        rows = json.loads(out.read_text()) if out.is_file() else {}
        write_whole(out, (json.dumps({**rows, row: result}, indent=1) + "\n").encode())
        return
    write_whole(out, (json.dumps(result, indent=1) + "\n").encode())
    if out.resolve() == RESULTS:
        head, rest = PAGE.read_text().split("<!-- adaptation -->\n")
        tail = rest.split("<!-- /adaptation -->")[1]
        PAGE.write_text(f"{head}<!-- adaptation -->\n{as_table(result)}\n<!-- /adaptation -->{tail}")


def main() -> None:
    """Adapt, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--name", required=True, help="what the data is, for the results file")
    parser.add_argument("--checkpoint", type=Path, default=Path("dpm-n"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--labelled", action="store_true", help="add the upper reference to the results file")
    parser.add_argument("--before", action="store_true", help="score the model as it is, and adapt nothing")
    parser.add_argument("--row", metavar="NAME", help="write the result as this row of --out, beside others")
    parser.add_argument("-o", "--out", type=Path, help="the results file that ships also goes into docs/site.md")
    for setting in dataclasses.fields(Plan):
        kind = type(setting.default)
        parser.add_argument(f"--{setting.name.replace('_', '-')}", type=kind, default=setting.default)
    said = parser.parse_args()
    plan = Plan(**{setting.name: getattr(said, setting.name) for setting in dataclasses.fields(Plan)})
    train = read_folder(said.data / "bounding_box_train")
    site, validation = split(train)
    crops = link(of_people(train, site), said.work / "crops")
    before = checkpoint.load_any(said.checkpoint)
    after, result = before, dict[str, Any]()
    if said.labelled:
        after, result = train_with_names(said.checkpoint, crops, plan, said.work / "labelled")
    elif not said.before:
        after, result = adapted(said.checkpoint, crops, plan, said.work / "adapted")
    sides = one_of_each_camera(of_people(train, validation)) if said.validate else query_and_gallery(said.data)
    query, gallery = (decode(side, before.spec.preprocessing) for side in sides)
    bodies = decode(of_people(train, site), before.spec.preprocessing)
    cache = said.work.parent / f"covered-{'validation' if said.validate else 'test'}.safetensors"
    sets = occlusion_sets(query, bodies, SHARES, cache=cache)
    if said.labelled:
        labelled = {"scores": score(after, query, gallery, sets), **result, "machine": machine_card()}
        save({**json.loads(said.out.read_text()), "labelled": labelled}, said.out)  # as it is now: both may run at once
        return
    others = np.setdiff1d(np.unique(train.people[train.people > 0]), np.concatenate([site, validation]))
    strangers = behind(query, decode(of_people(train, others), before.spec.preprocessing))
    models = {"before": before} if said.before else {"before": before, "after": after}
    written = {
        "data": said.name,
        "scored on": f"{VALIDATION} other training people" if said.validate else "the test people",
        "queries": len(query.names),
        "rows": len(gallery.names),
        "shares": SHARES,
        **{when: score(net, query, gallery, sets) for when, net in models.items()},
        **({} if said.before else {"adaptation": result}),
        "behind people of no crop": {
            when: {space: parts["covered by body"] for space, parts in score(net, query, gallery, strangers).items()}
            for when, net in models.items()
        },
        "scored by": machine_card(),
    }
    say(json.dumps({key: written[key] for key in ("before", "after") if key in written}, indent=1))
    if said.before and said.out:
        written["model"] = checkpoint.fingerprint(before)
        write_whole(said.out, (json.dumps(written, indent=1) + "\n").encode())
    elif said.out:
        save(written, said.out, said.row)


if __name__ == "__main__":
    main()
