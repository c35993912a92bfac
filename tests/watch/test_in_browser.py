"""The page in a real Chromium: pictures arrive, people can be found, named and merged, by mouse and by keyboard."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from stand_ins import make_seeing, scene, walk, write_scenes

from dpm_edge.watch.page.server import PageServer
from dpm_edge.watch.site_config import CameraConfig, CountingLine, Site, Zone
from dpm_edge.watch.store import WatchStore
from dpm_edge.watch.watch_site import WatchSite

pytest.importorskip("uvicorn", reason="uvicorn is not installed (the extra `watch`)")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("DPM_EDGE_SCREENSHOTS")
"""A folder for pictures of the page, to look at."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield one
        one.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[PageServer]:
    """The page of a site that was watched a moment ago."""
    now = time.time() - 60
    door = write_scenes(tmp_path / "door.avi", walk("red", 8) + [scene()] * 25 + walk("green", 8))
    yard = write_scenes(tmp_path / "yard.avi", [scene()] * 20 + walk("red", 8) + [scene()] * 12 + walk("blue", 8))
    cameras = tuple(CameraConfig(name=v.stem, source=str(v), start=now) for v in (door, yard))
    zone = Zone(name="bench", camera="door", points=((0.6, 0.5), (0.9, 0.5), (0.9, 0.95), (0.6, 0.95)))
    line = CountingLine(name="gate", camera="yard", begin=(160, 100), end=(160, 230))
    site = Site(name="warehouse", cameras=cameras, zones=(zone,), lines=(line,), thumbnails=True, port=0)
    with WatchStore(":memory:", run="") as store, WatchSite(site, store) as watch:
        watch.run(make_seeing())
        with PageServer(watch) as page:
            yield page


def opened(browser: Any, served: PageServer, problems: list[str], **how: Any) -> Any:
    page = browser.new_page(**how)
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(served.address)
    wait_for(page, "document.querySelectorAll('#people-list button').length >= 3")
    wait_for(
        page,
        "[...document.querySelectorAll('.camera canvas')].every(c => c.width === 320 && "
        "c.getContext('2d').getImageData(5, 120, 1, 1).data[0] > 60)",
    )
    return page


def wait_for(page: Any, expression: str, seconds: float = 20.0) -> None:
    """Wait until an expression is true. Chromium's own way needs eval, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, f"it did not happen in time: {expression}"
        page.wait_for_timeout(50)


def screenshot(page: Any, name: str) -> None:
    if SCREENSHOTS:
        page.screenshot(path=str(Path(SCREENSHOTS) / name), full_page=True)


def test_pictures_people_timeline_and_ways_are_shown_without_an_error(browser: Any, served: PageServer) -> None:
    problems: list[str] = []
    page = opened(browser, served, problems, viewport={"width": 1400, "height": 900})
    assert page.locator(".camera").count() == 2
    assert "red" in page.locator("#way-rows").inner_text() and "door" in page.locator("#way-rows").inner_text()
    assert page.locator("#events li").count() >= 6
    assert "blue 90 %" in page.locator(".camera[data-camera=yard] .who").inner_text()
    wait_for(page, "document.querySelector('#camera-rows').innerText.includes('ended')")
    screenshot(page, "page-light.png")
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    screenshot(page, "page-dark.png")
    assert problems == []


def test_on_a_phone_nothing_sticks_out(browser: Any, served: PageServer) -> None:
    problems: list[str] = []
    page = opened(browser, served, problems, viewport={"width": 360, "height": 740}, device_scale_factor=2)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    screenshot(page, "page-phone.png")
    assert problems == []


def test_somebody_is_named_by_keyboard_alone(browser: Any, served: PageServer) -> None:
    problems: list[str] = []
    page = opened(browser, served, problems)
    page.focus("#people-list button[data-identity=red]")
    page.keyboard.press("Enter")
    page.wait_for_selector("#person[open]")
    page.keyboard.press("Tab")
    wait_for(page, "document.activeElement.id === 'name'")
    page.keyboard.type("Anna")
    page.keyboard.press("Enter")
    wait_for(page, "document.getElementById('person-title').textContent === 'Anna'")
    screenshot(page, "page-person.png")
    page.keyboard.press("Escape")
    wait_for(page, "document.getElementById('people-list').innerText.includes('Anna')")
    assert problems == []


def test_merging_reaches_people_and_timeline(browser: Any, served: PageServer) -> None:
    problems: list[str] = []
    page = opened(browser, served, problems)
    page.click("#people-list button[data-identity=blue]")
    page.wait_for_selector("#person[open]")
    page.select_option("#into", "red")
    page.click("#merge-form button")
    wait_for(page, "!document.querySelector('#people-list button[data-identity=blue]')")
    wait_for(page, "document.querySelector('#events').innerText.includes('one person with blue')")
    assert problems == []


def test_search_by_a_picture(browser: Any, served: PageServer, tmp_path: Path) -> None:
    problems: list[str] = []
    cv2.imwrite(str(tmp_path / "who.png"), scene(("green", 100, 200)))
    page = opened(browser, served, problems)
    page.set_input_files("#picture", str(tmp_path / "who.png"))
    page.wait_for_selector("#found .ranks")
    assert page.locator("#found .ranks ol").first.locator("button").first.inner_text() == "green"
    assert problems == []


def test_every_control_has_a_name_and_every_picture_a_text(browser: Any, served: PageServer) -> None:
    page = opened(browser, served, [])
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, select, input, canvas, img')].filter(e => !("
        "e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length || "
        "e.hasAttribute('alt'))).map(e => e.outerHTML)"
    )
    assert nameless == []


def test_a_site_that_does_not_answer_is_said_and_the_page_recovers(browser: Any, served: PageServer) -> None:
    page = opened(browser, served, [])
    page.context.set_offline(True)
    page.evaluate("0")
    page.context.set_offline(False)
    wait_for(page, "document.getElementById('state').textContent === 'connected'")


def test_a_change_while_the_page_is_open_appears_by_itself(browser: Any, served: PageServer, tmp_path: Path) -> None:
    page = opened(browser, served, [])
    page.evaluate(
        "fetch('/api/v1/people/green/merge', {method: 'POST', headers: {'X-Dpm-Edge': '1', 'Content-Type': "
        "'application/json'}, body: '{\"into\": \"red\"}'})"
    )
    wait_for(page, "document.querySelector('#events').innerText.includes('one person with green')")
    wait_for(page, "!document.querySelector('#people-list button[data-identity=green]')")
