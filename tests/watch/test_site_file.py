"""Site files: what they say is read, and each mistake is named with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dpm_edge.errors import SiteError
from dpm_edge.watch.site_config import DEFAULT_RULES
from dpm_edge.watch.site_file import parse_site, read_site, site_of
from dpm_edge.watch.toml_lines import lines_of

GOOD = """\
[site]
name = "warehouse"
keep = "30d"

[cameras.door]
source = "rtsp://admin:${DOOR_PASSWORD}@10.0.0.5/stream"
clock_error = "2s"

[cameras.yard]
source = "yard.mp4"
start = "2026-05-01T12:00:00Z"

[[zones]]
name = "bench"
camera = "yard"
points = [
    [10, 10],   # a comment with ] and "
    [200, 10],
    [200, 90],
]

[[lines]]
name = "gate"
camera = "door"
points = [[0.1, 0.5], [0.9, 0.5]]

[[rules]]
event = "moved"
from = "door"
to = "yard"
within = "10min"

[[rules]]
name = "loitering"
event = "dwelled"
zone = "bench"
after = "2min"

[[travel]]
from = "door"
to = "yard"
least = 5

[[overlaps]]
cameras = ["door", "yard"]

[[outputs]]
kind = "webhook"
url = "https://example.com/hook"
events = ["moved"]
"""


def problems(text: str) -> list[str]:
    with pytest.raises(SiteError) as found:
        parse_site(text)
    return str(found.value).splitlines()


def test_a_whole_site_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOOR_PASSWORD", "geheim")
    path = tmp_path / "site.toml"
    path.write_text(GOOD)
    site = read_site(path)
    door, yard = site.cameras
    assert door.source == "rtsp://admin:geheim@10.0.0.5/stream" and door.clock_error == 2.0
    assert yard.source == str(tmp_path / "yard.mp4") and yard.start == 1777636800.0
    assert site.keep == 30 * 86400 and site.zones[0].points == ((10, 10), (200, 10), (200, 90))
    moved, loitering = site.rules
    assert (moved.name, moved.origin, moved.destination, moved.within) == ("moved", "door", "yard", 600)
    assert (loitering.name, loitering.zone, loitering.after) == ("loitering", "bench", 120)
    assert site.travel[0].least == 5 and site.overlaps == (("door", "yard"),)
    assert site.outputs[0].url == "https://example.com/hook" and site.outputs[0].events == ("moved",)


def test_without_rules_the_usual_events_are_reported() -> None:
    site = parse_site('[cameras.door]\nsource = "0"\n')
    assert tuple(rule.event for rule in site.rules) == DEFAULT_RULES


def test_lines_of_every_key_are_found_behind_lists_of_several_lines() -> None:
    lines = lines_of(GOOD)
    text = GOOD.splitlines()
    assert text[lines["zones", 0, "points"] - 1].startswith("points")
    assert text[lines["rules", 1, "after"] - 1] == 'after = "2min"'
    assert text[lines["rules", 1] - 1] == "[[rules]]" and lines["rules", 1] > lines["rules", 0]
    assert text[lines["cameras", "yard", "start"] - 1].startswith("start")


def test_lines_behind_a_text_of_several_lines_are_found() -> None:
    assert lines_of('a = """\n[x]\nb = 1\n"""\nc = 2\n') == {(): 1, ("a",): 1, ("c",): 5}


CAMERA = '[cameras.door]\nsource = "0"\n'


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("[cameras.door\n", 1, "expected TOML"),
        (CAMERA + '[[rules]]\nevent = "moved"\nfrom = "dor"\n', 5, "got 'dor'. Did you mean 'door'?"),
        (CAMERA + '[[rules]]\nevent = "vanished"\n', 4, "got 'vanished'"),
        (CAMERA + "[[rules]]\n", 3, "expected event"),
        (CAMERA + '[[rules]]\nevent = "dwelled"\nzone = "z"\nafter = 5\n', 5, "There is none: add [[zones]]"),
        (CAMERA + '[[rules]]\nevent = "dwelled"\n', 3, "expected zone"),
        (CAMERA + '[[rules]]\nevent = "left"\nafter = 5\n', 5, "expected a key of [[rules]] number 1, got 'after'"),
        (CAMERA + '[[rules]]\nevent = "returned"\nafter = "0.2s"\n', 5, "longer than the clock"),
        (CAMERA + '[[zones]]\nname = "z"\ncamera = "door"\npoints = [[0, 0], [1, 1]]\n', 6, "at least 3 different"),
        (CAMERA + '[[zones]]\nname = "z"\ncamera = "door"\npoints = [[0, 0], [1], 2]\n', 6, "expected points"),
        (
            CAMERA + '[[lines]]\nname = "z"\ncamera = "door"\npoints = [[0, 0], [1, 1], [2, 2]]\n',
            6,
            "2 points of a line",
        ),
        (CAMERA + '[[outputs]]\nkind = "webhook"\nurl = "example.com"\n', 5, "expected http://"),
        (CAMERA + '[[outputs]]\nkind = "webhok"\n', 4, "Did you mean 'webhook'?"),
        (CAMERA + '[[outputs]]\nkind = "jsonl"\n', 3, "expected path"),
        (CAMERA + 'detect_every = "often"\n', 3, "expected detect_every in 1..100 or \"auto\", got 'often'"),
        (CAMERA + '[site]\ndetector_layout = "yolo"\n', 4, "Known: auto, detr, mmdeploy"),
        (CAMERA + "[site]\ndetector_size = [100, 100]\n", 4, "multiples of 32 for detector_size, got [100, 100]"),
        (CAMERA + '[site]\ndetector_person = "person"\n', 4, "expected the number of a class"),
        (CAMERA + 'reader = "vlc"\n', 3, "Known: auto, opencv, pyav"),
        (CAMERA + "rotate = 45\n", 3, "expected rotate of 0, 90, 180, 270 degrees clockwise, got 45"),
        (CAMERA + "detect_every = 0\n", 3, 'expected detect_every in 1..100 or "auto", got 0'),
        (CAMERA + "detect_every = 1.5\n", 3, 'expected a whole number or "auto" for detect_every'),
        (CAMERA + '[[outputs]]\nkind = "jsonl"\npath = "e"\nvectors = "on"\n', 6, "expected true or false for vectors"),
        (CAMERA + '[site]\nkeep = "soon"\n', 4, "for keep"),
        (CAMERA + '[page]\ntoken = "short"\n', 4, "at least 16 characters"),
        (CAMERA + "[page]\nport = 99999\n", 4, "0..65535"),
        ('[cameras.door]\nsource = "ftp://x"\n', 2, "got ftp://"),
        ('[cameras.door]\nsorce = "0"\n', 1, "expected source"),
        ('[cameras.door]\nsource = "${NOT_SET_ANYWHERE}"\n', 2, "environment variable NOT_SET_ANYWHERE"),
        ('[cameras."a/b"]\nsource = "0"\n', 1, "camera name of letters"),
        ('cameras = "door"\n', 1, "expected tables [cameras.NAME]"),
        (CAMERA + "camera = 3\n", 3, "expected a key of cameras.door"),
        (CAMERA + '[[people]]\nname = "x"\npictures = ["nowhere.jpg"]\n', 5, "got nothing at"),
    ],
)
def test_each_mistake_is_named_with_its_line(text: str, line: int, says: str) -> None:
    found = problems(text)
    assert any(one.startswith(f"site.toml:{line}: ") and says in one for one in found), found


def test_all_mistakes_are_reported_at_once_in_order_of_their_lines() -> None:
    found = problems(CAMERA + '[[rules]]\nevent = "x"\n[[rules]]\nevent = "y"\n')
    assert [one.split(":")[1] for one in found] == ["4", "6"]


def test_secrets_of_a_site_are_not_in_its_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    site = parse_site(CAMERA + '[[outputs]]\nkind = "webhook"\nurl = "http://a"\nsecret = "geheim"\n')
    assert "geheim" not in repr(site.outputs)


def test_missing_site_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="Check the path"):
        read_site(tmp_path / "none.toml")


def test_addresses_alone_make_a_site_with_a_camera_each(tmp_path: Path) -> None:
    site = site_of(["door.mp4", "other/door.mp4", "rtsp://a:b@host/x"], tmp_path)
    assert [camera.name for camera in site.cameras] == ["door", "door-2", "camera3"]


def test_the_site_files_in_the_guide_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "watch.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```toml\n(.*?)^```", guide, re.M | re.S)
    for name in set(re.findall(r"\$\{(\w+)\}", guide)):
        monkeypatch.setenv(name, "a-secret-of-more-than-sixteen-letters")
    for name in ("courier-1.jpg", "courier-2.jpg"):
        (tmp_path / name).touch()
    small, large = (parse_site(block, folder=tmp_path) for block in blocks)
    assert (small.rules[0].event, small.outputs[0].kind) == ("moved", "webhook")
    assert len(large.rules) == 4 and [one.kind for one in large.outputs] == ["jsonl", "webhook", "mqtt"]
