"""The demo without a video: the rendered people that ship, matched under the plain and the masked metric."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.demo.default_engine import open_engine
from dpm_edge.demo.picture import ShownMatch, ShownQuery, compose
from dpm_edge.errors import DataError, DpmError
from dpm_edge.evaluation import market_scores
from dpm_edge.files import write_whole
from dpm_edge.gallery import Gallery, Matches
from dpm_edge.images import read_image
from dpm_edge.market import LabelledFolder, query_and_gallery
from dpm_edge.metrics import similarity
from dpm_edge.opencv import cv2
from dpm_edge.progress import say
from dpm_edge.runtime import Embeddings
from dpm_edge.runtime.folder import embed_files
from dpm_edge.shipped import ASSETS

SHOWN, PLACES = 8, 5
HIDDEN = 0.7
"""A query is called occluded when less than this share of the person can be seen."""
HEADINGS = {"plain": "plain: cosine of all of it", "masked": "masked: under the query's own mask"}
FOLDER = ASSETS / "samples"
LABELS = "labels.csv"
LEAST_SHOWN = 0.35
"""Share in sight from which somebody can judge a match by eye."""


def run_samples(out: Path, *, engine: Path | None, as_json: bool, quiet: bool, samples: Path | None = None) -> None:
    """Match the samples, print scores and rankings on stdout, and write out/matches.png.

    Raises:
        DpmError: whatever building, opening or reading raises.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DpmError(f"expected a folder to write to, got {out}: {error.strerror}. Choose another: -o DIR") from error
    with open_engine(out, engine, quiet=quiet) as opened:
        people = read_samples(samples or FOLDER)
        queries = embed_files(opened, people.query.paths, quiet=quiet)
        targets = embed_files(opened, people.gallery.paths, quiet=quiet)
        gallery = Gallery.for_engine(opened)
        gallery.add(
            targets,
            people=people.gallery.people[targets.rows].tolist(),
            cameras=people.gallery.cameras[targets.rows].tolist(),
        )
        scores = _scores(people, queries, targets)
        shown = choose(people, queries.rows, SHOWN)
        if not shown:
            raise DataError(
                "expected sample queries with a match from another camera, got none. Install dpm-edge again"
            )
        some = queries.take(shown)
        cameras = people.query.cameras[some.rows]
        matches = {
            metric: gallery.search(
                some, PLACES, metric=metric, exclude_same_camera=True, query_cameras=cameras.tolist(), centre=False
            )
            for metric in HEADINGS
        }
        path = out / "matches.png"
        _write_picture(path, people, some, matches, scores)
        result = {
            "picture": str(path),
            "engine": str(opened.folder),
            "scores": scores,
            "queries": _ranking(people, some, matches),
        }
    _print(result, as_json=as_json)
    if not quiet:
        say(f"look at {path}")


def _scores(people: Samples, q: Embeddings, t: Embeddings) -> dict[str, dict[str, Any]]:
    """The Market-1501 protocol over all queries, the occluded and the whole ones, under each metric."""
    visible = people.visible[q.rows]
    groups = {"all": visible >= 0, "occluded": visible < HIDDEN, "whole": visible >= HIDDEN}
    result: dict[str, dict[str, Any]] = {}
    for metric in HEADINGS:
        s = similarity(q.features, t.features, metric=metric, query_masks=q.masks)
        result[metric] = {}
        for group, here in groups.items():
            labels = people.query.people[q.rows][here], people.query.cameras[q.rows][here]
            gallery = people.gallery.people[t.rows], people.gallery.cameras[t.rows]
            if here.any():
                result[metric][group] = market_scores(s[here], *labels, *gallery).as_dict()
    return result


def _ranking(people: Samples, some: Embeddings, matches: dict[str, Matches]) -> list[dict[str, Any]]:
    """JSON types: each shown query with its places under each metric."""
    return [
        {
            "query": people.query.paths[row].name,
            "visible": round(float(people.visible[row]), 3),
            "visibility": round(float(some.weight[i]), 3),
            **{
                metric: [
                    {
                        "person": str(found.people[i, place]),
                        "similarity": round(float(found.similarity[i, place]), 4),
                        "right": str(found.people[i, place]) == str(people.query.people[row]),
                    }
                    for place in np.flatnonzero(found.found[i])
                ]
                for metric, found in matches.items()
            },
        }
        for i, row in enumerate(some.rows)
    ]


def _write_picture(
    path: Path,
    people: Samples,
    some: Embeddings,
    matches: dict[str, Matches],
    scores: dict[str, dict[str, Any]],
) -> None:
    """Lay the shown queries out and write one PNG, whole."""
    rows = [
        ShownQuery(
            picture=read_image(people.query.paths[row]),
            name=f"person {people.query.people[row]}",
            visible=float(people.visible[row]),
            visibility=float(some.weight[i]),
            matches={
                metric: [
                    ShownMatch(
                        read_image(Path(found.sources[i, place])),
                        float(found.similarity[i, place]),
                        found.people[i, place] == str(people.query.people[row]),
                    )
                    for place in np.flatnonzero(found.found[i])
                ]
                for metric, found in matches.items()
            },
        )
        for i, row in enumerate(some.rows)
    ]
    group = "occluded" if "occluded" in scores["plain"] else "all"
    headings = {
        metric: (
            heading,
            f"{group} queries: Rank-1 {scores[metric][group]['rank1']:.1f} %, mAP {scores[metric][group]['mAP']:.1f} %",
        )
        for metric, heading in HEADINGS.items()
    }
    subtitle = "Rendered people; matches from other cameras only. Green: the same person. Red: somebody else."
    good, data = cv2.imencode(".png", compose(rows, "Who is behind it?", subtitle, headings))
    assert good, "OpenCV always encodes uint8 BGR as PNG"
    try:
        write_whole(path, data.tobytes())
    except OSError as error:
        raise DpmError(
            f"expected to save {path}, got {error.strerror}. Free some space, or choose another: -o DIR"
        ) from error


def _print(result: dict[str, Any], *, as_json: bool) -> None:
    """The result on stdout, as JSON or as two small tables."""
    if as_json:
        print(json.dumps(result, indent=2))
        return
    for row in result["queries"]:
        print(f"{row['query']}  {row['visible']:.0%} in sight, visibility {row['visibility']:.2f}")
        for metric in HEADINGS:
            places = "  ".join(
                f"{m['person']:>4} {m['similarity']:.3f} {'+' if m['right'] else '-'}" for m in row[metric]
            )
            print(f"  {metric:<7} {places}")
    print(f"{'queries':<10} {'metric':<7} {'count':>6} {'rank-1':>7} {'rank-5':>7} {'mAP':>7}")
    for group in ("all", "occluded", "whole"):
        for metric, by_group in result["scores"].items():
            if group in by_group:
                s = by_group[group]
                print(
                    f"{group:<10} {metric:<7} {s['queries']:>6} {s['rank1']:>7.1f} {s['rank5']:>7.1f} {s['mAP']:>7.1f}"
                )


@dataclass(frozen=True)
class Samples:
    """Queries and gallery, and the visible share of every query."""

    query: LabelledFolder
    gallery: LabelledFolder
    visible: NDArray[np.float64]
    """(Q,) share of the person that can be seen, 0..1, as rendered."""


def read_samples(folder: Path) -> Samples:
    """Read the samples of a folder with query/, bounding_box_test/ and labels.csv (columns `file` and `visible`).

    Raises:
        DataError: something is missing; it is named.
    """
    query, gallery = query_and_gallery(folder)
    path = folder / LABELS
    if not path.is_file():
        raise DataError(f"expected a CSV with the columns file and visible at {path}, got nothing")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file", "visible"} <= set(rows[0]):
        raise DataError(f"expected the columns file and visible in {path}, got {list(rows[0]) if rows else []}")
    share = {Path(row["file"]).name: float(row["visible"]) for row in rows}
    missing = [p.name for p in query.paths if p.name not in share]
    if missing:
        raise DataError(
            f"expected a row of {path} for each query, got none for {missing[0]} ({len(missing)} such files)"
        )
    return Samples(query, gallery, np.array([share[p.name] for p in query.paths]))


def choose(samples: Samples, rows: NDArray[np.int64], count: int) -> list[int]:
    """Choose the queries to show: three quarters the most hidden of different people, then whole ones.

    `rows` are the query rows that were embedded; positions in them come back. A query that no other camera saw is left
    out. Queries with less than LEAST_SHOWN in sight come only where there are too few others: a person reading the
    picture could not judge them.
    """
    people = samples.query.people[rows]
    cameras = samples.query.cameras[rows]
    visible = samples.visible[rows]
    answerable = [
        bool(((samples.gallery.people == p) & (samples.gallery.cameras != c)).any()) for p, c in zip(people, cameras)
    ]
    rising = [int(i) for i in np.argsort(visible, kind="stable") if answerable[i]]
    readable = sorted(rising, key=lambda i: visible[i] < LEAST_SHOWN)
    hidden = _first_of_each(readable, people, count - count // 4)
    taken = {people[i] for i in hidden}
    whole = _first_of_each([i for i in reversed(rising) if people[i] not in taken], people, count // 4)
    return hidden + whole


def _first_of_each(order: list[int], people: NDArray[np.int64], count: int) -> list[int]:
    """The first `count` of `order` with different people."""
    seen: dict[int, int] = {}
    for i in order:
        seen.setdefault(int(people[i]), i)
    return list(seen.values())[:count]
