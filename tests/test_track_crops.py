"""Crops of videos: which are cut, from where, and what is refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dpm_edge.errors import DataError
from dpm_edge.track_crops import cut_crops

BOXES = "frame,id,x0,y0,x1,y1\n" + "".join(f"{n},7,10,20,42,84\n{n},a/b,100,20,140,90\n" for n in range(6))
"""Two people who stand still for six frames; one more box is outside, one is small."""


def video(path: Path, frames: int = 6) -> Path:
    """Frame n is n times 20 grey, with a white rectangle where person 7 stands."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (160, 120))
    for n in range(frames):
        frame = np.full((120, 160, 3), 20 * n, np.uint8)
        frame[20:84, 10:42] = 255
        writer.write(frame)
    writer.release()
    return path


@pytest.fixture
def door(tmp_path: Path) -> tuple[Path, Path]:
    """A video and its boxes file."""
    boxes = tmp_path / "door.csv"
    boxes.write_text(BOXES + "0,out,200,20,240,90\n0,small,1,1,9,9\n")
    return video(tmp_path / "door.avi"), boxes


def test_boxes_of_every_second_frame_become_crops_by_camera_and_track(door: tuple[Path, Path], tmp_path: Path) -> None:
    made = cut_crops([door[0]], [door[1]], tmp_path / "crops", every=2, quiet=True)
    found = sorted(path.relative_to(made).as_posix() for path in made.rglob("*.jpg"))
    assert found == [f"door/track-{name}/frame-{n:07d}.jpg" for name in ("7", "a%2Fb") for n in (0, 2, 4)]
    white = cv2.imread(str(made / "door/track-7/frame-0000002.jpg"))
    assert white.shape == (64, 32, 3) and white.min() > 240
    grey = cv2.imread(str(made / "door/track-a%2Fb/frame-0000004.jpg"))
    assert grey.shape == (70, 40, 3) and abs(grey.mean() - 80) < 4


def test_what_was_cut_is_not_cut_again_until_a_file_changes(door: tuple[Path, Path], tmp_path: Path) -> None:
    made = cut_crops([door[0]], [door[1]], tmp_path / "crops", quiet=True)
    one = next(made.rglob("*.jpg"))
    one.unlink()
    cut_crops([door[0]], [door[1]], tmp_path / "crops", quiet=True)
    assert not one.exists()
    door[1].write_text(BOXES)
    cut_crops([door[0]], [door[1]], tmp_path / "crops", quiet=True)
    assert one.exists()


def test_a_cut_that_was_stopped_starts_over(door: tuple[Path, Path], tmp_path: Path) -> None:
    made = cut_crops([door[0]], [door[1]], tmp_path / "crops", quiet=True)
    (made / "door" / "track-7" / "9999999.jpg").touch()
    with pytest.raises(DataError, match=r"none\.avi"):  # after the first video was cut
        cut_crops([door[0], tmp_path / "none.avi"], [door[1], door[1]], tmp_path / "crops", quiet=True)
    door[1].write_text(BOXES)
    cut_crops([door[0]], [door[1]], tmp_path / "crops", quiet=True)
    assert not (made / "door" / "track-7" / "9999999.jpg").exists() and (made / "cut.json").is_file()


def test_a_folder_with_other_files_is_left_alone(door: tuple[Path, Path], tmp_path: Path) -> None:
    mine = tmp_path / "crops" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("keep")
    with pytest.raises(DataError, match="holds other files"):
        cut_crops([door[0]], [door[1]], tmp_path / "crops", quiet=True)
    assert mine.read_text() == "keep"


@pytest.mark.parametrize(
    ("videos", "boxes", "told"),
    [
        (["door.avi"], [], "expected --boxes FILE for each of 1 videos"),
        (["door.avi", "other/door.avi"], ["door.csv", "door.csv"], "got 'door' twice"),
        (["none.avi"], ["door.csv"], "none.avi, got nothing"),
        (["door.avi"], ["none.csv"], "none.csv, got nothing"),
    ],
)
def test_wrong_files_are_named(
    door: tuple[Path, Path], tmp_path: Path, videos: list[str], boxes: list[str], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        cut_crops([tmp_path / v for v in videos], [tmp_path / b for b in boxes], tmp_path / "crops", quiet=True)
