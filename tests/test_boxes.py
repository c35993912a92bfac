"""Boxes files: every format and encoding gives the boxes that stand in it, or is refused; none shifts in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpm_edge.boxes import FORMATS, BoxesFile, read_boxes
from dpm_edge.cli import options
from dpm_edge.errors import DataError

PLAIN = "0,7,10,20,30,60\n0,8,40,20,60,60\n3,7,11,20,31,60\n"
WANTED = {"0": (["7", "8"], [[10, 20, 30, 60], [40, 20, 60, 60]]), "3": (["7"], [[11, 20, 31, 60]])}


def read(tmp_path: Path, content: str | bytes, **more: str) -> BoxesFile:
    path = tmp_path / "boxes.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_boxes(path, **more)


def contents(file: BoxesFile) -> dict[str, tuple[list[str], list[list[float]]]]:
    return {frame: (one.ids, one.boxes.tolist()) for frame, one in file.frames.items()}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
def test_every_encoding_keeps_the_first_line(tmp_path: Path, encoding: str) -> None:
    marks = {"utf-16-le-bom": (b"\xff\xfe", "utf-16-le"), "utf-16-be-bom": (b"\xfe\xff", "utf-16-be")}
    mark, codec = marks.get(encoding, (b"", encoding))
    assert contents(read(tmp_path, mark + PLAIN.encode(codec))) == WANTED


@pytest.mark.parametrize("heading", ["frame,id,x0,y0,x1,y1\n", "Frame, ID, X0, Y0, X1, Y1\n"])
def test_heading_is_optional(tmp_path: Path, heading: str) -> None:
    assert contents(read(tmp_path, heading + PLAIN)) == WANTED


@pytest.mark.parametrize("mark", [";", "\t", " ", ", "])
def test_every_delimiter_is_found(tmp_path: Path, mark: str) -> None:
    assert contents(read(tmp_path, PLAIN.replace(",", mark))) == WANTED


def test_decimal_commas_of_a_spreadsheet_are_points(tmp_path: Path) -> None:
    assert contents(read(tmp_path, "0;7;1,5;2;3,25;4\n")) == {"0": (["7"], [[1.5, 2, 3.25, 4]])}


def test_line_ends_and_empty_lines_do_not_matter(tmp_path: Path) -> None:
    assert contents(read(tmp_path, "\r\n" + PLAIN.replace("\n", "\r\n") + "\r\n,,,,,\r\n")) == WANTED


def test_heading_may_name_other_columns_in_another_order(tmp_path: Path) -> None:
    text = "conf,x1,y1,x0,y0,track_id,frame\n0.9,30,60,10,20,7,4\n"
    assert contents(read(tmp_path, text)) == {"4": (["7"], [[10, 20, 30, 60]])}


@pytest.mark.parametrize("names", ["left,top,width,height", "x,y,w,h", "bb_left,bb_top,bb_width,bb_height"])
def test_heading_may_name_sizes(tmp_path: Path, names: str) -> None:
    file = read(tmp_path, f"frame,id,{names}\n0,7,10,20,5,8\n")
    assert contents(file) == {"0": (["7"], [[10, 20, 15, 28]])} and file.format == "corners"


@pytest.mark.parametrize("more", ["1,-1,-1,-1", "1,1,0.8"])
def test_motchallenge_counts_frames_and_pixels_from_1(tmp_path: Path, more: str) -> None:
    """The 10 columns of detections and results, the 9 of ground truth; left 1 is the first pixel, x0 = 0."""
    file = read(tmp_path, f"1,7,1,1,20,40,{more}\n2,7,11,21,20,40,{more}\n")
    assert file.format == "mot"
    by_position, how = file.of_video(50)
    assert {at: one.boxes.tolist() for at, one in by_position.items()} == {0: [[0, 0, 20, 40]], 1: [[10, 20, 30, 60]]}
    assert how is not None and "count from 1" in how


def test_more_columns_without_a_heading_are_refused_and_may_be_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"7 columns and no heading.*--boxes-format"):
        read(tmp_path, "0,7,10,20,30,60,0.9\n")
    assert contents(read(tmp_path, "0,7,10,20,30,60,0.9\n", format="corners")) == {"0": (["7"], [[10, 20, 30, 60]])}


def test_sizes_taken_for_corners_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="look like left,top,width,height"):
        read(tmp_path, "".join(f"{frame},7,{300 + frame},200,20,40\n" for frame in range(5)))


def numbered(tmp_path: Path, *frames: object) -> BoxesFile:
    return read(tmp_path, "".join(f"{frame},7,10,20,30,60\n" for frame in frames))


def test_frames_from_0_stay_where_they_are(tmp_path: Path) -> None:
    by_position, how = numbered(tmp_path, *range(10)).of_video(10)
    assert list(by_position) == list(range(10)) and how is None


def test_frames_from_1_to_the_last_are_shifted_and_that_is_said(tmp_path: Path) -> None:
    by_position, how = numbered(tmp_path, *range(1, 11)).of_video(10)
    assert list(by_position) == list(range(10))
    assert how is not None and "counted from 1" in how


@pytest.mark.parametrize("count", [0, 20])
def test_frames_that_may_count_from_0_or_from_1_are_refused(tmp_path: Path, count: int) -> None:
    file = numbered(tmp_path, *range(1, 11))
    with pytest.raises(DataError, match="--first-frame 0 or --first-frame 1"):
        file.of_video(count)
    assert list(file.of_video(count, 0)[0]) == list(range(1, 11))
    assert list(file.of_video(count, 1)[0]) == list(range(10))


def test_later_frames_are_taken_from_0_and_that_is_said(tmp_path: Path) -> None:
    by_position, how = numbered(tmp_path, 5, 6).of_video(20)
    assert list(by_position) == [5, 6] and how is not None and "--first-frame 1" in how


def test_frame_numbers_of_a_spreadsheet_or_with_zeros_are_numbers(tmp_path: Path) -> None:
    assert list(numbered(tmp_path, "0.0", "0001", "2").of_video(5)[0]) == [0, 1, 2]


@pytest.mark.parametrize(("frames", "first"), [((30, 31), None), ((0, 1), 1)])
def test_frames_outside_the_video_are_refused(tmp_path: Path, frames: tuple[int, ...], first: int | None) -> None:
    with pytest.raises(DataError, match="--first-frame N"):
        numbered(tmp_path, *frames).of_video(20, first)


def test_file_names_are_no_frames_of_a_video(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got frame 'a\.png'"):
        numbered(tmp_path, "a.png").of_video(20)


@pytest.mark.parametrize("text", ["0,1,5,5,x,9\n", "0,1,5\n"])
def test_line_that_is_wrong_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="line 1, got '0,1,5"):
        read(tmp_path, text)


@pytest.mark.parametrize("content", ["", "frame,id,x0,y0,x1,y1\n", "\n\n"])
def test_file_without_a_box_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="holds no box"):
        read(tmp_path, content)


@pytest.mark.parametrize("content", [b"0,caf\xe9,1,2,3,4\n", b"\x00\x01\x02", b"\xff\xfe0"])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="expected text in UTF-8"):
        read(tmp_path, content)


def test_heading_with_unknown_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a heading with frame,id,x0,y0,x1,y1"):
        read(tmp_path, "frame,id,cx,cy\n0,1,2,3\n")


def test_missing_file_and_unknown_format_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got nothing"):
        read_boxes(tmp_path / "no.csv")
    with pytest.raises(DataError, match="got a folder"):
        read_boxes(tmp_path)
    with pytest.raises(DataError, match="got 'coco'"):
        read(tmp_path, PLAIN, format="coco")


def test_xml_boxes_are_a_centre_and_a_size(tmp_path: Path) -> None:
    (tmp_path / "b.xml").write_text(
        '<dataset><frame number="4"><objectlist><object id="9"><box h="40" w="20" xc="100" yc="50"/></object>'
        "</objectlist></frame></dataset>"
    )
    file = read_boxes(tmp_path / "b.xml")
    assert contents(file) == {"4": (["9"], [[90, 30, 110, 70]])} and list(file.of_video(20)[0]) == [4]
    (tmp_path / "b.xml").write_text("<dataset><frame")
    with pytest.raises(DataError, match="expected XML"):
        read_boxes(tmp_path / "b.xml")


def test_command_line_offers_the_formats_that_are_read() -> None:
    assert options.FORMATS == FORMATS
