"""Two programs, each with a camera of its own and one gallery on a server, take everybody for whom one program does."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from stand_ins import ColourEngine

from dpm_edge import Gallery

PROGRAM = Path(__file__).parent / "shared_program.py"


def started(place: str, cameras: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), place, cameras], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def together(programs: list[subprocess.Popen]) -> list[dict[str, Any]]:
    """Let programs go on step by step, none before the others; what each prints at last."""
    while True:
        said = [str(one.stdout.readline()) for one in programs if one.stdout is not None]
        if "next\n" not in said:
            return [json.loads(line) for line in said]
        for one in programs:
            assert one.stdin is not None
            one.stdin.write("go on\n")
            one.stdin.flush()


def groups(tracks: list[list[Any]]) -> set[frozenset[tuple[str, int]]]:
    """Which tracks are of one person: each as its camera and its number there."""
    found, numbers = defaultdict(set), defaultdict(int)
    for camera, _, identity in tracks:
        found[identity].add((camera, numbers[camera]))
        numbers[camera] += 1
    return {frozenset(one) for one in found.values()}


@pytest.mark.parametrize("server", [pytest.param("milvus", marks=pytest.mark.slow)])
def test_two_programs_with_one_gallery_give_the_identities_of_one(server: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(f"{server}_url").replace("http://", f"{server}://")
    place = f"{url}/w{uuid.uuid4().hex}"
    Gallery.create(place, ColourEngine.fingerprint, ColourEngine.dimension).close()
    programs = [started("memory", "door,yard"), started(place, "door"), started(place, "yard")]
    try:
        (alone,), (door, yard) = together(programs[:1]), together(programs[1:])
    finally:
        for one in programs:
            one.kill()
            one.wait()
    assert groups(alone["tracks"]) == {
        frozenset({("door", 0), ("yard", 1)}), frozenset({("yard", 0), ("door", 1)}),
        frozenset({("door", 2)}), frozenset({("yard", 2)}),
    }  # fmt: skip
    assert groups(door["tracks"] + yard["tracks"]) == groups(alone["tracks"])
    moves = [{tuple(one) for one in found} for found in (door["moved"] + yard["moved"], alone["moved"])]
    assert moves == [{("door", "yard"), ("yard", "door")}] * 2  # a move that a split takes back is told all the same
