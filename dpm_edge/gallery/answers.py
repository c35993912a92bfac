"""What a search and a gallery say, as JSON types: the same on the command line and over HTTP."""

from __future__ import annotations

from collections import Counter
from typing import Any

from dpm_edge.gallery.calibration import Calibration
from dpm_edge.gallery.gallery import Gallery
from dpm_edge.gallery.matches import Matches
from dpm_edge.gallery.rows import Where
from dpm_edge.gallery.search.space import described
from dpm_edge.gallery.stores.store import SITE
from dpm_edge.runtime.embeddings import Embeddings


def query_json(queries: Embeddings, matches: Matches, i: int) -> dict[str, Any]:
    """Return one query and its matches as JSON types."""
    found = []
    for match in matches.of_query(i):
        row: dict[str, Any] = {
            "row": match.row,
            "similarity": round(match.similarity, 6),
            "score": round(match.score, 6),
            "person": match.person,
            "camera": match.camera,
            "timestamp": None if match.timestamp != match.timestamp else match.timestamp,
            "source": match.source,
            "payload": match.payload,
        }
        if match.decision:
            row |= {"probability": round(match.probability, 4), "decision": match.decision}
        found.append(row)
    name = queries.sources[i] if queries.sources else f"row {queries.rows[i]}"
    seen = {} if queries.visibility is None else {"visibility": round(float(queries.visibility[i]), 4)}
    return {"query": name, **seen, "matches": found}


def cameras_to_search_with(cameras: list[str], calibration: Calibration | None, *, needed: bool) -> list[str] | None:
    """What `Gallery.search` takes as `query_cameras`: None where nobody names a camera and nothing needs one.

    Args:
        cameras: one a query, "" for one that nobody knows.
        calibration: what the search is given; one of centred features needs cameras.
        needed: whether an option of the search needs them: `exclude_same_camera`, `centre`.
    """
    return cameras if needed or any(cameras) or (calibration is not None and calibration.centred) else None


def gallery_json(gallery: Gallery) -> dict[str, Any]:
    """Return rows, people, cameras and times of a gallery, and what it says of itself. Reads every row's labels."""
    people: set[str] = set()
    cameras: Counter[str] = Counter()
    times: list[float] = []
    with gallery._guarded.lock:  # a server adds rows meanwhile
        for rows in gallery.store.scan(Where(), vectors=False):
            people.update(rows.people)
            cameras.update(rows.cameras)
            known = rows.timestamps[rows.timestamps == rows.timestamps]
            times = [min([*times, *known.tolist()]), max([*times, *known.tolist()])] if len(known) else times
    about = gallery.describe()
    site = {camera: one["count"] for camera, one in ((about.pop(SITE, None) or {}).get("cameras") or {}).items()}
    return {
        "rows": sum(cameras.values()),
        "people": len(people - {""}),
        "cameras": dict(cameras),
        "first": times[0] if times else None,
        "last": times[-1] if times else None,
        "centring": described(cameras + Counter(site), about),
        "site_statistics": site or None,
        **about,
    }
