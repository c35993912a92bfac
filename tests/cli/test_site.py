"""`dpm-edge site`: versions, resuming, going back; the steps themselves are stand-ins that write what they would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dpm_edge.cli import main
from dpm_edge.cli import site as site_command
from dpm_edge.site_versions import SiteFolder

STEPS = ("adapt", "build", "migrate", "calibrate")


class Steps:
    """Stand-ins for the four steps, which may fail at one of them; `done` names what ran, and for which version."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.made_of: dict[str, Any] = {}
        self.fail_at = ""

    def step(self, name: str) -> Callable[[Path, dict[str, Any], bool], dict[str, Any]]:
        told = {
            "adapt": {"crops": 9, "cameras": ["a", "b"], "evidence": None, "check": None},
            "build": {"engine": "f" * 12},
            "migrate": {"rows": 3, "rows without a picture": 1},
            "calibrate": {"calibration": "by tracks"},
        }

        def run(version: Path, made_of: dict[str, Any], quiet: bool) -> dict[str, Any]:
            if name == self.fail_at:
                raise KeyboardInterrupt
            if not (version / name).is_file():
                (version / name).touch()
                self.done.append((version.name, name))
            self.made_of = made_of
            return told[name]

        return run


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    made = Steps()
    for name in STEPS:
        monkeypatch.setattr(site_command, name, made.step(name))
    return made


def run(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["site", *map(str, arguments)])


@pytest.fixture
def begun(tmp_path: Path) -> list[object]:
    (tmp_path / "crops").mkdir()
    return [tmp_path / "shop", "dpm-t", "--crops", tmp_path / "crops", "--gallery", tmp_path / "seen", "--quiet"]


def test_init_makes_the_first_version_and_uses_it(steps: Steps, begun: list[object], tmp_path: Path) -> None:
    done = run("init", *begun, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["version"] == "0001" and told["rows"] == 3
    assert (tmp_path / "shop" / "current").resolve() == tmp_path / "shop" / "versions" / "0001"
    assert steps.done == [("0001", name) for name in STEPS]
    assert steps.made_of["model"] == "dpm-t" and steps.made_of["gallery"] == str(tmp_path / "seen")
    again = run("init", *begun)
    assert again.exit_code == 1 and "dpm-edge site update" in again.output


@pytest.mark.parametrize("stopped_at", STEPS)
def test_what_was_stopped_goes_on_after_its_last_step(steps: Steps, begun: list[object], stopped_at: str) -> None:
    steps.fail_at = stopped_at
    assert run("init", *begun).exit_code == 130
    assert SiteFolder(begun[0]).current is None  # type: ignore[arg-type]
    steps.fail_at = ""
    assert run("init", *begun).exit_code == 0
    assert steps.done == [("0001", name) for name in STEPS]  # each step once


def test_update_starts_from_the_version_in_use_which_stays_until_the_new_one_is_whole(
    steps: Steps, begun: list[object], tmp_path: Path
) -> None:
    run("init", *begun)
    shop, first = SiteFolder(tmp_path / "shop"), tmp_path / "shop" / "versions" / "0001"
    steps.fail_at = "calibrate"
    assert run("update", tmp_path / "shop", "--minutes", 5).exit_code == 130
    assert shop.current == first
    steps.fail_at = ""
    assert run("update", tmp_path / "shop").exit_code == 0  # what was said before is kept
    assert steps.made_of["minutes"] == 5 and steps.made_of["model"] == str(first / "adapted.safetensors")
    assert steps.made_of["gallery"] == str(first / "gallery")
    assert shop.current is not None and shop.current.name == "0002"
    assert steps.done[4:] == [("0002", name) for name in STEPS]


def test_an_unfinished_version_of_other_settings_is_begun_anew(steps: Steps, begun: list[object]) -> None:
    run("init", *begun)
    steps.fail_at = "build"
    run("update", begun[0], "--minutes", 5)
    steps.fail_at = ""
    run("update", begun[0], "--minutes", 7)
    assert [name for version, name in steps.done if version == "0002"] == ["adapt", *STEPS]


def test_back_uses_the_version_before_and_a_rejected_one_is_not_come_back_to(
    steps: Steps, begun: list[object], tmp_path: Path
) -> None:
    shop = SiteFolder(tmp_path / "shop")
    for command in (["init", *begun], ["update", shop.folder], ["back", shop.folder]):
        assert run(*command).exit_code == 0
    assert shop.current is not None and shop.current.name == "0001"
    assert run("update", shop.folder, "--quiet").exit_code == 0
    assert [one.name for one in shop.versions()] == ["0001", "0003"]  # 0002 was rejected
    assert run("back", shop.folder).exit_code == 0 and shop.current.name == "0001"
    none = run("back", shop.folder)
    assert none.exit_code == 1 and "to go back to, got none" in none.output


def test_only_the_new_version_and_the_one_before_it_are_kept(steps: Steps, begun: list[object]) -> None:
    run("init", *begun)
    for _ in range(3):
        assert run("update", begun[0], "--quiet").exit_code == 0
    assert [one.name for one in SiteFolder(begun[0]).versions()] == ["0003", "0004"]  # type: ignore[arg-type]


def test_show_lists_versions(steps: Steps, begun: list[object]) -> None:
    run("init", *begun)
    steps.fail_at = "build"
    run("update", begun[0])
    lines = run("show", begun[0]).stdout.splitlines()
    assert lines[0].startswith("* 0001  engine of model ffffffffffff, from 9 crops of 2 cameras")
    assert lines[1] == "  0002  unfinished"


def test_a_second_process_is_kept_out(steps: Steps, begun: list[object]) -> None:
    run("init", *begun)
    with SiteFolder(begun[0]).locked():  # type: ignore[arg-type]
        busy = run("update", begun[0])
    assert busy.exit_code == 1 and "which another process is working on" in busy.output


def test_other_files_and_other_settings_are_refused(steps: Steps, begun: list[object], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    full = run("init", tmp_path / "full", *begun[1:])
    assert full.exit_code == 1 and "expected an empty folder for a new site" in full.output
    steps.fail_at = "adapt"
    run("init", *begun)
    other = run("init", *begun, "--minutes", 3)
    assert other.exit_code == 1 and "begun with other settings" in other.output
    neither = run("init", tmp_path / "new", "dpm-t")
    assert neither.exit_code == 2 and "got neither" in neither.output
    nowhere = run("back", tmp_path / "nowhere")
    assert nowhere.exit_code == 1 and "expected a site at" in nowhere.output and not (tmp_path / "nowhere").exists()
