"""`dpm-edge gallery migrate`: the new model's rows are the network's, the old gallery is whole until the switch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny_engine
from click.testing import CliRunner

from dpm_edge import Engine, Gallery
from dpm_edge.cli import main
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.jobs.migrate import migrate, re_embed

N, GONE, BROKEN, UNSAID, FRAME = 90, 4, 11, 23, 31
NEW = "next" * 16


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two engines and pictures; row 31 is a box in a frame, row 32 a crop that has a box in a frame elsewhere."""
    root = tmp_path_factory.mktemp("site")
    tiny_engine.write_engine(root / "old")
    tiny_engine.write_engine(root / "new", seed=1, fingerprint=NEW)
    (root / "crops").mkdir()
    for i in range(N):
        write(root, i)
    return root


def write(site: Path, i: int) -> None:
    picture = cv2.resize(tiny_engine.people(N)[i], (300, 600), interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(site / "crops" / f"{i}.png"), picture)


def pictures(site: Path) -> list[np.ndarray]:
    """What each row was embedded from."""
    read = [cv2.imread(str(site / "crops" / f"{i}.png")) for i in range(N)]
    read[FRAME] = read[FRAME][100:400, 50:250]
    return read


def fill(site: Path, gallery: Gallery) -> None:
    write(site, BROKEN)
    boxes = np.full((N, 4), np.nan, np.float32)
    boxes[FRAME], boxes[FRAME + 1] = [50, 100, 250, 400], [1000, 2000, 1300, 2600]
    with Engine.load(site / "old", threads=1) as engine:
        rows = engine.embed(pictures(site))
    rows.sources.extend(f"{i}.png" for i in range(N))
    rows.sources[GONE], rows.sources[UNSAID] = "gone.png", ""
    gallery.add(
        rows,
        people=[f"p{i % 5}" for i in range(N)],
        cameras=[i % 3 for i in range(N)],
        timestamps=[1e9 + i for i in range(N)],
        tracks=[f"t{i}" for i in range(N)],
        boxes=boxes,
        payloads=[{"i": i} for i in range(N)],
        ids=range(N),
    )
    gallery.retain("1", 99)
    gallery.describe(candidates_per_place=3)
    (site / "crops" / f"{BROKEN}.png").write_bytes(b"no picture")


@pytest.fixture
def old(site: Path, tmp_path: Path) -> Path:
    """A folder's gallery of the old model."""
    with Gallery.create(tmp_path / "seen", tiny_engine.FINGERPRINT, 24) as gallery:
        fill(site, gallery)
    return tmp_path / "seen"


LOST = {GONE: "No such file", BROKEN: "OpenCV", UNSAID: "no source was kept"}


def assert_migrated(site: Path, gallery: Gallery) -> None:
    """Every row but the lost ones, with the new network's feature and mask and the old labels."""
    rest = [i for i in range(N) if i not in LOST]
    rows, read = gallery.rows(), pictures(site)
    assert gallery.fingerprint == NEW and rows.ids.tolist() == rest
    feature, mask = tiny_engine.expected([read[i] for i in rest], seed=1)
    np.testing.assert_allclose(rows.features, feature, atol=2e-3)
    np.testing.assert_allclose(rows.masks, mask, atol=2e-3)
    np.testing.assert_allclose(rows.visibility, mask.mean(1) / tiny_engine.SPEC.mask_mean, atol=1e-3)
    assert rows.people == [f"p{i % 5}" for i in rest] and rows.tracks == [f"t{i}" for i in rest]
    assert rows.cameras == [str(i % 3) for i in rest] and rows.payloads == [{"i": i} for i in rest]
    assert rows.timestamps.tolist() == [1e9 + i for i in rest] and rows.boxes[rest.index(FRAME)].tolist()[2:] == [
        250,
        400,
    ]


def said(*arguments: object) -> dict:
    done = CliRunner().invoke(main, ["gallery", "migrate", *map(str, arguments), "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("lost", ["keep", "drop"])
def test_a_folder_in_its_place(site: Path, old: Path, lost: str) -> None:
    told = said(old, site / "new", "--pictures", site / "crops", "--lost", lost)
    assert (told["rows"], told["embedded"], told["model"]) == (N - 3, N - 3, NEW)
    assert [(one["id"], LOST[one["id"]] in one["reason"]) for one in told["lost"]] == [(i, True) for i in sorted(LOST)]
    with Gallery.open(old) as gallery:
        assert_migrated(site, gallery)
        about = gallery.describe()
        assert about["retention"] == {"1": 99} and "candidates_per_place" not in about
        assert gallery.search(gallery_query(site), 1).rows.tolist() == [[7]]
    assert sorted(p.name for p in old.iterdir() if p.is_dir()) == ["shard-2"]
    if lost == "drop":
        assert told["kept_back"] is None and [p.name for p in old.parent.iterdir()] == ["seen"]
        (line,) = [json.loads(line) for line in (old / "audit.jsonl").read_text().splitlines()]
        assert (line["what"], line["ids"]) == ("migrate", sorted(LOST))
    else:
        with Gallery.open(told["kept_back"]) as kept:
            assert kept.fingerprint == tiny_engine.FINGERPRINT and kept.rows().ids.tolist() == sorted(LOST)
            assert kept.rows().features.any(1).all() and kept.rows().payloads[0] == {"i": GONE}
    with Engine.load(site / "new", threads=1) as engine, pytest.raises(GalleryError, match="already"):
        migrate(old, engine)


def gallery_query(site: Path) -> object:
    with Engine.load(site / "new", threads=1) as engine:
        return engine.embed([pictures(site)[7]])


def test_a_saved_file_in_its_place(site: Path, old: Path, tmp_path: Path) -> None:
    with Gallery.open(old) as gallery:
        held = gallery.rows()
        memory = Gallery(tiny_engine.FINGERPRINT, 24)
        memory.store.add(held)
    path = tmp_path / "seen.safetensors"
    memory.save(path)
    told = said(path, site / "new", "--pictures", site / "crops")
    assert_migrated(site, Gallery.load(path))
    assert Gallery.load(told["kept_back"]).rows().ids.tolist() == sorted(LOST)


def test_into_another_place_and_again_after_changes(site: Path, old: Path, tmp_path: Path) -> None:
    to = tmp_path / "next"
    assert said(old, site / "new", "--pictures", site / "crops", "--to", to)["embedded"] == N - 3
    with Gallery.open(to) as gallery:
        assert_migrated(site, gallery)
        gallery.delete([8, 9])  # as if it was cut off before these
    with Gallery.open(old) as gallery:
        assert len(gallery) == N and gallery.fingerprint == tiny_engine.FINGERPRINT
        gallery.delete([20])
    told = said(old, site / "new", "--pictures", site / "crops", "--to", to)
    assert (told["embedded"], told["rows"], told["kept_back"]) == (2, N - 4, None)
    with Gallery.open(to) as gallery:
        assert gallery.ids().tolist() == [i for i in range(N) if i not in (*LOST, 20)]
    with pytest.raises(GalleryError, match="got one of"), Engine.load(site / "new", threads=1) as engine:
        Gallery.create(tmp_path / "third", "f", 24).close()
        migrate(old, engine, to=tmp_path / "third")


def test_every_store_is_brought_level(site: Path, make: Any) -> None:
    before, after = make(24, fingerprint=tiny_engine.FINGERPRINT), make(24, fingerprint=NEW)
    fill(site, before)
    with Engine.load(site / "new", threads=1) as engine:
        embedded, lost = re_embed(before, after, engine, pictures=site / "crops")
        assert embedded == N - 3 and sorted(one.id for one in lost) == sorted(LOST)
        assert_migrated(site, after)
        assert re_embed(before, after, engine, pictures=site / "crops")[0] == 0


@pytest.mark.slow
def test_killed_by_kill_9_the_folder_is_the_old_gallery_and_goes_on(site: Path, old: Path) -> None:
    with Gallery.open(old) as gallery:
        before = gallery.rows()
    script = """
        import sys, time
        from dpm_edge.gallery.jobs import migrate
        from dpm_edge.cli import main
        add = migrate._add
        def slow(*arguments):
            embedded = add(*arguments)
            print("batch", file=sys.stderr, flush=True)
            time.sleep(0.3)
            return embedded
        migrate._add = slow
        main(["gallery", "migrate", *sys.argv[1:], "--quiet", "--json"])
    """
    script = "\n".join(line[8:] for line in script.splitlines())
    command = [sys.executable, "-c", script, str(old), str(site / "new"), "--pictures", str(site / "crops")]
    done = 0
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None and process.stderr.readline() == "batch\n"
        process.kill()
        process.communicate()
        with Gallery.open(old) as gallery:
            held = gallery.rows()
            assert gallery.fingerprint == tiny_engine.FINGERPRINT
            np.testing.assert_array_equal(held.features, before.features)
            assert held.ids.tolist() == list(range(N))
        with Gallery.open(old / "migrating") as waiting:
            assert done < len(waiting) < N - 3
            done = len(waiting)
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["embedded"] == N - 3 - done
    with Gallery.open(old) as gallery:
        assert_migrated(site, gallery)


def test_forgetting_takes_what_a_waiting_migration_has_copied(site: Path, old: Path) -> None:
    with Gallery.create(old / "migrating", NEW, 24) as waiting, Engine.load(site / "new", threads=1) as engine:
        waiting.add(engine.embed(pictures(site)[:2]), people=["p4", "p1"], ids=[0, 1])
    with Gallery.open(old) as gallery:
        gallery.forget("p4")
    assert not (old / "migrating").exists()


def test_what_another_model_left_is_thrown_away(site: Path, old: Path) -> None:
    Gallery.create(old / "migrating", "third" * 8, 24).close()
    with Engine.load(site / "new", threads=1) as engine:
        migrate(old, engine, pictures=site / "crops")
    with Gallery.open(old) as gallery:
        assert_migrated(site, gallery)


def test_a_gallery_that_another_process_holds_is_moved_to_another_place(site: Path, old: Path, tmp_path: Path) -> None:
    hold = "import sys; from dpm_edge import Gallery; g = Gallery.open(sys.argv[1]); print('held', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", hold, str(old)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    try:
        with Engine.load(site / "new", threads=1) as engine:
            done = migrate(old, engine, to=tmp_path / "moved", pictures=site / "crops", quiet=True)
    finally:
        holder.communicate(b"\n")
    assert done.rows == N - len(done.lost) and done.rows > 80
    with Gallery.open(tmp_path / "moved") as gallery:
        assert gallery.fingerprint == NEW and len(gallery) == done.rows
