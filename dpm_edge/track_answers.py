"""The labels file of a site: which tracks are one person, as somebody has said.

    one,other,answer                                track,person
    door/track-3,yard/track-17,same                 door/track-3,anna
    door/track-3,yard/track-20,different            yard/track-17,anna

Text in UTF-8 with one of these two headings. A track is named CAMERA/TRACK, as its folder among the crops; a crop
without a track CAMERA/PICTURE. `dpm-edge label` writes the first form, `dpm-edge adapt --labels` reads both.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path

from dpm_edge.errors import DataError
from dpm_edge.files import decode_text, write_whole

PAIRS, NAMES = ("one", "other", "answer"), ("track", "person")
SAME, DIFFERENT = "same", "different"
Answer = tuple[str, str, bool]
"""Two tracks, and whether they are one person."""


def read_answers(path: Path) -> list[Answer]:
    """Read a labels file. Names of people become pairs: tracks of a name are one person, those of two names two.

    Raises:
        DataError: the file cannot be read or has another form; the message has the line.
    """
    try:
        text = decode_text(path, path.read_bytes())
    except OSError as error:
        raise DataError(f"expected a labels file that can be read, got {path}: {error.strerror}") from error
    lines = [[cell.strip() for cell in line] for line in csv.reader(io.StringIO(text)) if any(line)]
    heading = tuple(lines[0]) if lines else ()
    if heading not in (PAIRS, NAMES):
        raise DataError(
            f"expected the heading {','.join(PAIRS)} or {','.join(NAMES)} in {path}, got {','.join(heading)!r}. "
            "`dpm-edge label` writes such a file"
        )
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(heading) or not all(line) or (heading == PAIRS and line[2] not in (SAME, DIFFERENT)):
            raise DataError(
                f"expected {','.join(heading)} in line {number} of {path}, got {','.join(line)!r}. "
                + (f"An answer is {SAME} or {DIFFERENT}" if heading == PAIRS else "Leave out tracks of nobody known")
            )
    if heading == PAIRS:
        return [(one, other, answer == SAME) for one, other, answer in lines[1:]]
    tracks: dict[str, list[str]] = {}
    for track, person in lines[1:]:
        tracks.setdefault(person, []).append(track)
    same = [(a, b, True) for some in tracks.values() for a, b in pairwise(some)]
    return same + [(a[0], b[0], False) for a, b in combinations(tracks.values(), 2)]


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Write a labels file of pairs, whole or not at all.

    Raises:
        DpmError: the disk is full or the folder cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(PAIRS)
    writer.writerows((one, other, SAME if same else DIFFERENT) for one, other, same in answers)
    write_whole(path, text.getvalue().encode())
