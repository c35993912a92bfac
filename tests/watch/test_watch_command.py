"""`dpm-edge watch` as it is typed: events on stdout, status on stderr, refusals in a sentence."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import tiny_engine
from click.testing import CliRunner, Result
from stand_ins import make_seeing, scene, walk, write_scenes

from dpm_edge import Engine, Gallery
from dpm_edge.cli import main
from dpm_edge.watch import seeing
from dpm_edge.watch.store import WatchStore


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two videos and an engine; seeing is by colour."""
    write_scenes(tmp_path / "door.avi", walk("red", 8) + [scene()] * 25)
    write_scenes(tmp_path / "yard.avi", [scene()] * 20 + walk("red", 8))
    tiny_engine.write_engine(tmp_path / "engine")
    monkeypatch.setattr(seeing, "open_seeing", lambda *_, **__: make_seeing())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def watch(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["watch", *arguments, "--engine", "engine"])


def test_two_videos_are_one_command(place: Path) -> None:
    done = watch("door.avi", "yard.avi", "--no-page")
    assert done.exit_code == 0, done.output
    assert any("yard" in line and "red came from door in 1 s" in line for line in done.stdout.splitlines())
    assert "61 frames, 5 events" in done.stderr
    assert (place / "watch" / "watch.sqlite3").is_file()


def test_json_is_one_event_a_line(place: Path) -> None:
    done = watch("door.avi", "yard.avi", "--no-page", "--json", "--quiet")
    kinds = [json.loads(line)["kind"] for line in done.stdout.splitlines()]
    assert sorted(kinds) == ["entered", "entered", "left", "left", "moved"]


def test_a_site_file_with_rules_and_outputs(place: Path) -> None:
    (place / "site.toml").write_text(
        '[cameras.door]\nsource = "door.avi"\n[cameras.yard]\nsource = "yard.avi"\n'
        '[[rules]]\nname = "A to B"\nevent = "moved"\n'
        '[[outputs]]\nkind = "jsonl"\npath = "events.jsonl"\n'
    )
    done = watch("site.toml", "--no-page", "--json")
    assert done.exit_code == 0, done.output
    (line,) = (place / "events.jsonl").read_text().splitlines()
    assert json.loads(line) == json.loads(done.stdout) and json.loads(line)["rule"] == "A to B"


def test_the_page_is_served_meanwhile(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed (the extra `watch`)")
    got: list[Any] = []
    from dpm_edge.watch.page import server

    start = server.PageServer.__enter__

    def entered(page: Any) -> Any:
        start(page)
        with urllib.request.urlopen(page.address + "api/v1/site") as answer:
            got.append(json.load(answer))
        return page

    monkeypatch.setattr(server.PageServer, "__enter__", entered)
    done = watch("door.avi", "--once", "--port", "0")
    assert done.exit_code == 0, done.output
    assert got[0]["cameras"] == ["door"] and "page: http://127.0.0.1:" in done.stderr


def test_a_port_that_is_taken_is_one_sentence(place: Path) -> None:
    pytest.importorskip("uvicorn", reason="uvicorn is not installed (the extra `watch`)")
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = watch("door.avi", "--once", "--port", str(taken.getsockname()[1]))
    assert done.exit_code == 1 and "Choose another: --port 0" in done.output


def test_a_store_that_is_in_use_is_one_sentence(place: Path) -> None:
    with WatchStore(place / "watch" / "watch.sqlite3"):
        done = watch("door.avi", "--no-page")
    assert done.exit_code == 1 and "expected a store that nobody uses" in done.output


SITE = """
[site]
gallery = "seen"
[cameras.door]
source = "door.avi"
[cameras.yard]
source = "yard.avi"
"""


def test_a_program_may_watch_some_cameras_of_a_site(place: Path) -> None:
    pytest.importorskip("qdrant_edge", reason="galleries in a folder need qdrant-edge-py")
    (place / "site.toml").write_text(SITE)
    done = watch("site.toml", "--camera", "door", "--no-page")
    assert done.exit_code == 0 and "33 frames" in done.stderr, done.output
    assert "people at yard are not recognised here" in done.stderr  # a folder is no gallery for two programs
    wrong = watch("site.toml", "--camera", "dor", "--no-page")
    assert wrong.exit_code == 1 and "Did you mean 'door'?" in wrong.output


def test_a_gallery_folder_that_another_program_holds_is_refused_with_the_way_out(place: Path) -> None:
    pytest.importorskip("qdrant_edge", reason="galleries in a folder need qdrant-edge-py")
    (place / "site.toml").write_text(SITE)
    with Engine.load(place / "engine", threads=1) as engine, Gallery.for_engine(engine, place / "seen"):
        done = watch("site.toml", "--camera", "door", "--no-page")
    assert done.exit_code == 1 and '[site] gallery = "qdrant://HOST:PORT/NAME"' in done.output
    assert done.output.count("Error: ") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.mp4"], "expected a video file or a folder at none.mp4, got nothing"),
        (["none.toml"], "expected a site file, got none.toml"),
        (["door.avi", "site.toml"], "expected one site file or several sources"),
        (["ftp://host/x"], "got ftp://"),
    ],
)
def test_what_cannot_be_watched_is_one_sentence(place: Path, arguments: list[str], says: str) -> None:
    done = watch(*arguments, "--no-page")
    assert done.exit_code == 1 and says in done.output and done.output.count("Error: ") == 1


def test_mistakes_of_a_site_file_are_all_named(place: Path) -> None:
    (place / "site.toml").write_text('[cameras.door]\nsource = "door.avi"\n[[rules]]\nevent = "x"\n[page]\nport = -1\n')
    done = watch("site.toml")
    assert done.exit_code == 1 and "site.toml:4: " in done.output and "site.toml:6: " in done.output
