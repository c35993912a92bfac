"""The demo without a video: the sample people that ship, matched under the plain and the masked metric."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dpm_edge.demo.engine import open_engine
from dpm_edge.demo.picture import Found, Row, compose
from dpm_edge.demo.samples import FOLDER, Samples, choose, read_samples
from dpm_edge.errors import DataError, DpmError
from dpm_edge.evaluation import market_scores
from dpm_edge.files import write_whole
from dpm_edge.gallery import Gallery, Matches
from dpm_edge.images import read_image
from dpm_edge.metrics import similarity
from dpm_edge.progress import say
from dpm_edge.runtime import Embeddings
from dpm_edge.runtime.folder import embed_files

SHOWN, PLACES = 8, 5
HIDDEN = 0.7
"""A query is called occluded when less than this share of the person can be seen."""
HEADINGS = {"plain": "plain: cosine of all of it", "masked": "masked: under the query's own mask"}


def run_samples(out: Path, *, engine: Path | None, as_json: bool, quiet: bool, samples: Path | None = None) -> None:
    """Match the samples, print scores and rankings on stdout, and write out/matches.png.

    Raises:
        DpmError: whatever building, opening or reading raises.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DpmError(f"{out} cannot be written ({error.strerror}). Choose another folder: -o DIR") from error
    with open_engine(out, engine, quiet=quiet) as opened:
        people = read_samples(samples or FOLDER)
        queries = embed_files(opened, people.query.paths, quiet=quiet)
        found = embed_files(opened, people.gallery.paths, quiet=quiet)
        gallery = Gallery.for_engine(opened)
        gallery.add(
            found,
            people=people.gallery.people[found.rows].tolist(),
            cameras=people.gallery.cameras[found.rows].tolist(),
        )
        scores = _scores(people, queries, found)
        shown = choose(people, queries.rows, SHOWN)
        if not shown:
            raise DataError("none of the sample queries has a match from another camera")
        some = queries.take(shown)
        cameras = people.query.cameras[some.rows]
        matches = {
            metric: gallery.search(
                some, PLACES, metric=metric, exclude_same_camera=True, query_cameras=cameras.tolist()
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
            "visibility": round(float(some.visibility[i]), 3),
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
        Row(
            picture=read_image(people.query.paths[row]),
            name=f"person {people.query.people[row]}",
            visible=float(people.visible[row]),
            visibility=float(some.visibility[i]),
            found={
                metric: [
                    Found(
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
        raise DpmError(f"{path} could not be saved ({error.strerror})") from error


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
