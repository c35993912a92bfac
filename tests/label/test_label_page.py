"""The page that asks "same person?": over HTTP, from the command line, and in a real browser."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny_engine
from click.testing import CliRunner

from dpm_edge.cli import main
from dpm_edge.label_page import LabelPage
from dpm_edge.label_questions import Questions
from dpm_edge.track_answers import read_answers, write_answers

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = ["door/1", "door/2", "yard/7", "yard/8"]


@pytest.fixture
def page(tmp_path: Path) -> Iterator[LabelPage]:
    """Four tracks of five crops; the pair (0, 2) is the least sure."""
    crops = []
    for track in range(4):
        files = [tmp_path / f"{track}-{i}.png" for i in range(5)]
        for i, file in enumerate(files):
            cv2.imwrite(str(file), np.full((40, 20, 3), 40 * track + i, np.uint8))
        crops.append(files)
    angle = np.deg2rad([0, 90, 45, 180])
    questions = Questions(np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32), NAMES, [(0, 1)], 0.7072)
    with LabelPage(questions, crops, tmp_path / "labels.csv") as opened:
        yield opened


def ask(page: LabelPage, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=20)
    if body is None:
        connection.request("GET", path, headers=headers)
    else:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, json.loads(data) if answer.getheader("Content-Type") == "application/json" else data


def test_an_answer_is_in_the_file_at_once_and_the_next_question_comes(page: LabelPage) -> None:
    _, state = ask(page, "/state")
    assert [state["question"][side]["name"] for side in ("one", "other")] == ["door/1", "yard/7"]
    _, state = ask(page, "/answer", {"one": "door/1", "other": "yard/7", "answer": "same"})
    assert read_answers(page.out) == [("door/1", "yard/7", True)] and state["answered"] == 1
    asked = {state["question"][side]["name"] for side in ("one", "other")}
    assert asked not in ({"door/1", "yard/7"}, {"door/1", "door/2"}, {"door/2", "yard/7"})  # they are told
    _, state = ask(page, "/undo", {})
    assert read_answers(page.out) == [] and state["question"]["other"]["name"] == "yard/7"


def test_three_crops_of_a_track_are_shown_from_its_beginning_to_its_end(page: LabelPage) -> None:
    _, state = ask(page, "/state")
    assert len(state["question"]["one"]["pictures"]) == 3
    for number, i in enumerate((0, 2, 4)):
        status, data = ask(page, f"/crop/2/{number}")
        assert status == 200 and data == (page.out.parent / f"2-{i}.png").read_bytes()
    for path in ("/crop/2/3", "/crop/9/0", "/crop/../labels.csv", "/nothing"):
        assert ask(page, path)[0] == 404


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/answer", {"one": "door/1", "other": "door/2", "answer": "same"}, 409),
        ("/answer", {"one": "door/1", "other": "x", "answer": "same"}, 409),
        ("/answer", {"one": "door/1", "other": "yard/7", "answer": "perhaps"}, 409),
        ("/answer", ["door/1"], 400),
        ("/answer", {"one": "x" * 5000}, 400),
        ("/other", {}, 404),
    ],
)
def test_what_is_no_answer_is_refused(page: LabelPage, path: str, body: Any, status: int) -> None:
    got, said = ask(page, path, body)
    assert got == status and said["error"].startswith("expected")
    assert not page.out.exists()


def test_other_sites_and_names_are_kept_out(page: LabelPage) -> None:
    answer = {"one": "door/1", "other": "yard/7", "answer": "same"}
    assert ask(page, "/state", Host="evil.example")[0] == 403
    assert ask(page, "/answer", answer, **{"Content-Type": "text/plain"})[0] == 415
    assert not page.out.exists()


def test_an_answer_that_cannot_be_written_is_not_kept(page: LabelPage) -> None:
    page.out = page.out.parent / "0-0.png" / "labels.csv"
    status, said = ask(page, "/answer", {"one": "door/1", "other": "yard/7", "answer": "same"})
    assert status == 409 and said["error"] and not page.questions.answers


def test_the_page_finishes_after_the_last_answer_or_when_asked(page: LabelPage) -> None:
    page.most = 1
    _, state = ask(page, "/answer", {"one": "door/1", "other": "yard/7", "answer": "different"})
    assert state["finished"] and state["question"] is None and page.finished.is_set()


def test_the_command_goes_on_with_a_file_and_ends_when_the_page_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, draw = tiny_engine.write_engine(tmp_path / "engine"), np.random.default_rng(1)
    for track, look in enumerate(tiny_engine.people(6)):
        folder = tmp_path / "crops" / f"cam-{track % 2}" / f"t{track}"
        folder.mkdir(parents=True)
        for shot in range(3):
            noisy = np.clip(look + draw.integers(-20, 20, look.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"frame-{10 * track + shot:07d}.png"), noisy)
    write_answers(tmp_path / "labels.csv", [("cam-0/t0", "cam-1/t1", True), ("old/1", "old/2", False)])
    enter = LabelPage.__enter__

    def answered(page: LabelPage) -> LabelPage:
        """Somebody answers one question and finishes."""
        opened = enter(page)

        def visit() -> None:
            question = ask(opened, "/state")[1]["question"]
            pair = {side: question[side]["name"] for side in ("one", "other")}
            ask(opened, "/answer", {**pair, "answer": "different"})
            ask(opened, "/done", {})

        threading.Thread(target=visit, daemon=True).start()
        return opened

    monkeypatch.setattr(LabelPage, "__enter__", answered)
    command = ["label", str(tmp_path / "crops"), "--engine", str(engine), "-o", str(tmp_path / "labels.csv")]
    done = CliRunner().invoke(main, [*command, "--no-browser", "--quiet", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["answers"] == 3 and json.loads(done.stdout)["new"] == 1
    kept = read_answers(tmp_path / "labels.csv")
    assert kept[:2] == [("cam-0/t0", "cam-1/t1", True), ("old/1", "old/2", False)] and len(kept) == 3


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_a_browser_answers_by_keyboard_and_by_mouse(page: LabelPage) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    problems: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page()
        tab.on("pageerror", lambda error: problems.append(str(error)))
        tab.goto(page.url)
        sync_api.expect(tab.locator("#one-name")).to_have_text("door/1")
        sync_api.expect(tab.locator("#one img")).to_have_count(3)
        loaded = "document.querySelectorAll('img').length == 6 && [...document.images].every(i => i.naturalWidth == 20)"
        tab.wait_for_function(loaded)
        tab.keyboard.press("s")
        sync_api.expect(tab.get_by_role("status")).to_contain_text("1 answered")
        tab.keyboard.press("z")
        sync_api.expect(tab.get_by_role("status")).to_contain_text("0 answered")
        assert tab.locator("#undo").is_disabled()
        tab.get_by_role("button", name="Different").click()
        sync_api.expect(tab.get_by_role("status")).to_contain_text("1 answered")
        assert read_answers(page.out) == [("door/1", "yard/7", False)]
        tab.keyboard.press("u")
        tab.keyboard.press("q")  # while the answer is on its way: it is not lost
        sync_api.expect(tab.get_by_role("status")).to_contain_text("Finished: 1 answers")
        browser.close()
    assert page.finished.is_set() and problems == []
