"""`dpm-edge gallery fill`: two workers make the rows that one makes; killed ones lose none and add none twice."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_engine
from click.testing import CliRunner
from oracle import rows

from dpm_edge import Gallery
from dpm_edge.cli import main
from dpm_edge.gallery.jobs import archive
from dpm_edge.gallery.jobs.archive import Archive, _write_list, read_archive
from dpm_edge.gallery.rows import Rows

PICTURES, BROKEN = 41, 17


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures named as Market-1501's, one of them broken, and an engine."""
    root = tmp_path_factory.mktemp("site")
    tiny_engine.write_engine(root / "engine")
    (root / "crops").mkdir()
    for i, picture in enumerate(tiny_engine.people(PICTURES)):
        large = cv2.resize(picture, (900, 1800), interpolation=cv2.INTER_NEAREST)  # some work for each
        cv2.imwrite(str(root / "crops" / name(i)), large)
    (root / "crops" / name(BROKEN)).write_bytes(b"no picture")
    return root


def name(i: int) -> str:
    return f"{i % 7 + 1:04d}_c{i % 3}s1_{i:06d}_00.png"


def fill(site: Path, out: Path, *more: object) -> list[str]:
    """The command line."""
    place = [str(out / "seen"), str(site / "engine"), str(site / "crops"), "--archive", str(out / "shards")]
    return [*place, "--shard-size", "2", "--threads", "1", "--json", "--quiet", *map(str, more)]


def start(site: Path, out: Path, *more: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "dpm_edge.cli", "gallery", "fill", *fill(site, out, *more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(process: subprocess.Popen) -> dict:
    said, wrong = process.communicate(timeout=300)
    assert process.returncode == 0, wrong
    return json.loads(said)


def here(site: Path, out: Path, *more: object) -> dict:
    """The command in this process."""
    done = CliRunner().invoke(main, ["gallery", "fill", *fill(site, out, *more)])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def rows_of(out: Path) -> Rows:
    with Gallery.open(out / "seen") as gallery:
        return gallery.rows()


@pytest.fixture(scope="module")
def alone(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The rows that one worker makes."""
    out = tmp_path_factory.mktemp("alone")
    told = here(site, out)
    assert (told["pictures"], told["shards"], told["embedded"], told["missing"]) == (PICTURES, 21, 21, 0)
    assert told["added"] == told["rows"] == PICTURES - 1
    assert [Path(one["picture"]).name for one in told["skipped"]] == [name(BROKEN)]
    return rows_of(out)


def assert_same(got: Rows, wanted: Rows) -> None:
    assert len(set(wanted.ids.tolist())) == PICTURES - 1
    np.testing.assert_array_equal(got.ids, wanted.ids)
    np.testing.assert_array_equal(got.features, wanted.features)
    np.testing.assert_array_equal(got.masks, wanted.masks)
    assert (got.sources, got.people, got.cameras) == (wanted.sources, wanted.people, wanted.cameras)


def test_one_workers_rows_are_the_networks(alone: Rows, site: Path) -> None:
    pictures = [cv2.imread(str(site / "crops" / Path(source).name)) for source in alone.sources]
    feature, mask = tiny_engine.expected(pictures)
    np.testing.assert_allclose(alone.features, feature, atol=2e-3)
    np.testing.assert_allclose(alone.masks, mask, atol=2e-3)
    assert alone.people == [Path(source).name[:4] for source in alone.sources]


def test_two_workers_and_a_second_run(site: Path, alone: Rows, tmp_path: Path) -> None:
    assert finish(start(site, tmp_path, "--workers", 2))["added"] == PICTURES - 1
    assert_same(rows_of(tmp_path), alone)
    again = here(site, tmp_path)
    assert (again["embedded"], again["added"], again["rows"]) == (0, 0, PICTURES - 1)


def shards(out: Path) -> int:
    return len(list((out / "shards").glob("shard-*.safetensors")))


def wait_for(out: Path, count: int, process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while shards(out) < count:
        assert process.poll() is None and time.monotonic() < until, "the command ended early"
        time.sleep(0.01)


def workers_of(pid: int) -> list[int]:
    """The embedding processes below a command; multiprocessing also starts one that tracks resources."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the workers' numbers are read from /proc")
def test_a_worker_killed_by_kill_9_loses_none_and_doubles_none(site: Path, alone: Rows, tmp_path: Path) -> None:
    command = start(site, tmp_path, "--workers", 2)
    wait_for(tmp_path, 2, command)
    os.kill(workers_of(command.pid)[0], signal.SIGKILL)
    assert finish(command)["added"] == PICTURES - 1
    assert_same(rows_of(tmp_path), alone)


@pytest.mark.slow
def test_everything_killed_by_kill_9_goes_on_with_the_same_command(site: Path, alone: Rows, tmp_path: Path) -> None:
    for round_number in range(3):
        command = start(site, tmp_path, "--workers", 2)
        wait_for(tmp_path, 4 * (round_number + 1), command)
        os.killpg(command.pid, signal.SIGKILL)
        command.communicate()
    kept = shards(tmp_path)
    assert 12 <= kept < 21, kept
    told = finish(start(site, tmp_path, "--workers", 2))
    assert (told["embedded"], told["added"]) == (21 - kept, PICTURES - 1)
    assert_same(rows_of(tmp_path), alone)
    assert not list((tmp_path / "shards").glob(".*.part"))


def test_parts_on_two_machines_and_a_half_poured_gallery(site: Path, alone: Rows, tmp_path: Path) -> None:
    second = here(site, tmp_path, "--part", "2/2")
    assert (second["embedded"], second["missing"], second["rows"]) == (10, 11, None)
    assert here(site, tmp_path, "--part", "1/2")["added"] == PICTURES - 1
    assert_same(rows_of(tmp_path), alone)
    with Gallery.open(tmp_path / "seen") as gallery:
        gallery.delete(alone.ids[5:11])  # as if it was cut off there
    assert here(site, tmp_path)["added"] == 6
    assert_same(rows_of(tmp_path), alone)


@pytest.mark.slow
def test_torchrun_starts_the_parts(site: Path, alone: Rows, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "dpm_edge.cli", "gallery", "fill", *fill(site, tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_same(rows_of(tmp_path), alone)


def refused(site: Path, out: Path, *more: object) -> str:
    done = CliRunner().invoke(main, ["gallery", "fill", *fill(site, out, *more)])
    assert done.exit_code and "Traceback" not in done.output, done.output
    return done.output


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), tiny_engine.people(seed + 1)[seed])


@pytest.fixture
def street(site: Path, tmp_path: Path) -> Path:
    """Five pictures of a first day, and the engine."""
    shutil.copytree(site / "engine", tmp_path / "engine")
    for i in range(5):
        picture(tmp_path / "crops" / name(i), i)
    return tmp_path


def test_pictures_that_came_later_are_added_and_the_old_ones_stay_once(street: Path) -> None:
    assert here(street, street)["added"] == 5
    for i in (5, 6, 7):
        picture(street / "crops" / name(i), i)
    told = here(street, street)
    assert (told["pictures"], told["added"], told["rows"]) == (8, 3, 8)
    assert sorted(Path(one).name for one in rows_of(street).sources) == sorted(name(i) for i in range(8))


def test_another_archive_folder_adds_only_what_the_gallery_lacks(street: Path) -> None:
    here(street, street)
    (street / "shards").rename(street / "old-shards")
    picture(street / "crops" / name(5), 5)
    told = here(street, street)
    assert (told["embedded"], told["added"], told["rows"]) == (3, 1, 6)


def test_a_folder_named_in_another_way_adds_nothing_twice(street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here(street, street)
    monkeypatch.chdir(street)
    line = ["gallery", "fill", "seen", "engine", "crops", "./crops/", "--archive", "shards", "--json", "--quiet"]
    done = CliRunner().invoke(main, line)
    assert done.exit_code == 0 and json.loads(done.stdout)["added"] == 0, done.output


def test_one_archive_folder_serves_two_galleries_of_two_folders(street: Path) -> None:
    here(street, street)
    picture(street / "yard" / name(9), 9)
    line = ["gallery", "fill", str(street / "yard-seen"), str(street / "engine"), str(street / "yard")]
    done = CliRunner().invoke(main, [*line, "--archive", str(street / "shards"), "--json", "--quiet"])
    told = json.loads(done.stdout)
    assert (told["added"], told["rows"]) == (1, 1), "rows of the other folder are not this gallery's"


def test_a_name_that_is_not_utf8_is_added_as_text(street: Path) -> None:
    shutil.copy(street / "crops" / name(0), os.fsencode(street / "crops") + b"/0001_c1_caf\xe9.png")
    assert here(street, street)["added"] == 6
    assert rf"{street}/crops/0001_c1_caf\xe9.png" in rows_of(street).sources
    assert here(street, street)["added"] == 0


def test_a_name_of_two_lines_is_reported_and_the_rest_is_added(street: Path) -> None:
    shutil.copy(street / "crops" / name(0), street / "crops" / "two\nlines.png")
    told = here(street, street)
    assert told["added"] == 5
    assert ["one line" in one["reason"] for one in told["skipped"]] == [True]


def test_person_and_camera_folders_keep_person_and_camera(street: Path) -> None:
    for i, place in enumerate(("anna/gate", "anna/yard", "ben/gate")):
        picture(street / "people" / place / f"{i}.png", i)
    shutil.rmtree(street / "crops")
    (street / "people").rename(street / "crops")
    here(street, street)
    rows = rows_of(street)
    assert sorted(zip(rows.people, rows.cameras)) == [("anna", "gate"), ("anna", "yard"), ("ben", "gate")]


def test_folders_by_date_make_nobody_known(street: Path) -> None:
    for i in range(3):
        picture(street / "archive" / "2026" / f"0{i + 1}" / f"{i}.png", i)
    shutil.rmtree(street / "crops")
    (street / "archive").rename(street / "crops")
    here(street, street)
    assert rows_of(street).people == [""] * 3


def test_two_machines_that_list_at_once_share_one_list(street: Path) -> None:
    first, second = (Archive(street / "shards", "f") for _ in range(2))
    assert _write_list(first, ["/a.png", "/b.png"], 10)
    assert not _write_list(second, ["/a.png"], 10), "the first list stays"
    assert read_archive(street / "shards", "f").pictures == ["/a.png", "/b.png"]
    assert [path.name for path in (street / "shards").iterdir()] == ["pictures-0001.txt"]


def test_two_paths_of_one_hash_both_get_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "picture_id", lambda path: 7)
    gallery = Gallery("f", 12)
    gallery.add(dataclasses.replace(rows(1), sources=["/a"]), people=["x"], ids=[7])
    assert archive._lacking(gallery, ["/a", "/b", "/c"]) == {"/b": 8, "/c": 9}


def test_each_picture_is_hashed_once_in_a_run(street: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run costs grows with the pictures; benchmarks/gallery_fill.py measures up to a million."""
    hashed: list[str] = []
    whole = archive.picture_id
    monkeypatch.setattr(archive, "picture_id", lambda path: hashed.append(path) or whole(path))
    here(street, street)
    assert sorted(Path(one).name for one in hashed) == sorted(name(i) for i in range(5))


def test_a_part_that_cannot_be_is_refused(site: Path, tmp_path: Path) -> None:
    assert "I/N with I from 1 to N" in refused(site, tmp_path, "--part", "3/2")


def test_a_damaged_shard_is_named_and_made_again_when_removed(street: Path) -> None:
    here(street, street)
    with Gallery.open(street / "seen") as gallery:
        gallery.forget("0005")
    shard = street / "shards" / "shard-000002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-20])
    assert f"got {shard}, which is damaged" in refused(street, street)
    shard.unlink()
    told = here(street, street)
    assert (told["embedded"], told["added"]) == (1, 1)


def test_a_shard_of_other_pictures_is_refused(street: Path) -> None:
    here(street, street)
    with Gallery.open(street / "seen") as gallery:
        gallery.forget("0001")
    shutil.copy(street / "shards" / "shard-000001.safetensors", street / "shards" / "shard-000000.safetensors")
    assert "expected the pictures of the lists" in refused(street, street)


def test_a_list_that_was_edited_is_refused(street: Path) -> None:
    here(street, street)
    listed = street / "shards" / "pictures-0001.txt"
    listed.write_text(listed.read_text() + "x")
    assert "got one that was changed" in refused(street, street)
    assert len(rows_of(street)) == 5


def test_another_models_archive_is_refused(street: Path) -> None:
    (street / "shards").mkdir()
    assert _write_list(Archive(street / "shards", "other"), ["/a.png"], 10)
    assert "of model other" in refused(street, street)
