"""Occluders, curves and the colour floor."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from histogram import histogram_scores
from toy_world import TINY

from dpm_edge.errors import DataError
from dpm_edge.layouts import read_dataset
from dpm_edge.model.network import DPM
from dpm_edge.train import occluders
from dpm_edge.train.data import decode, to_input
from dpm_edge.train.evaluate import covered, evaluate, occlusion_curves, occlusion_sets, spread, summary

PRE = TINY.replace(height=64, width_px=32).preprocessing


@pytest.fixture(scope="module")
def parts(market):
    people = read_dataset(market, train=True)
    return [decode(part, PRE, quiet=True) for part in (people.train, people.query, people.gallery)]


@pytest.mark.parametrize("kind", ["texture", "object", "body"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_an_occluder_covers_the_share_that_was_asked_for(kind, share):
    bodies = np.random.default_rng(0).integers(1, 255, (5, 128, 64, 3), dtype=np.uint8)
    make = occluders.kinds(bodies)[kind]
    image = np.zeros((128, 64, 3), np.uint8)
    image[:, :, 0] = 7  # a colour that no occluder has by chance all over
    found = []
    for seed in range(40):
        done = occluders.cover(image, share, make, np.random.default_rng(seed))
        assert done.shape == image.shape and done.dtype == np.uint8
        found.append((done != image).any(2).mean())
    assert np.abs(np.array(found) - share).max() < 0.06
    assert (image[:, :, 0] == 7).all()


def test_a_share_of_nothing_leaves_the_picture():
    image = np.full((32, 16, 3), 9, np.uint8)
    assert occluders.cover(image, 0.0, occluders.texture_stamp, np.random.default_rng(0)) is image


def test_occluders_follow_the_seed_and_grow_in_place(parts):
    train, query, _ = parts
    bodies = train.pixels[:5].permute(0, 2, 3, 1).numpy()
    one, again, other = (covered(query, "texture", 0.3, bodies, seed).pixels for seed in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_covered_sets_come_from_the_cache_and_only_for_the_same_queries(parts, tmp_path):
    train, query, gallery = parts
    cache = tmp_path / "covered.safetensors"
    made = occlusion_sets(query, train, (0.0, 0.2), cache, workers=1)
    kept = occlusion_sets(query, train, (0.0, 0.2), cache)
    assert set(made) == {("texture", 0.2), ("object", 0.2), ("body", 0.2)}
    assert all(torch.equal(made[key].pixels, kept[key].pixels) for key in made)
    with pytest.raises(DataError, match="expected covered pictures of these queries"):
        occlusion_sets(gallery, train, (0.2,), cache)


def test_curves_of_an_untrained_network_have_equal_metrics_and_a_row_for_all(parts):
    train, query, gallery = parts
    torch.manual_seed(0)
    net = DPM(TINY.replace(height=64, width_px=32))
    bodies = train.pixels[:5].permute(0, 2, 3, 1).numpy()
    sets = {("body", 0.4): covered(query, "body", 0.4, bodies, 0)}
    rows = occlusion_curves(net, query, gallery, sets)[net.spec.neck]
    assert {(r["kind"], r["share"], r["metric"]) for r in rows} == {
        (k, s, m) for k, s in (("whole", 0.0), ("body", 0.4)) for m in ("plain", "masked")
    }
    by_metric = {r["metric"]: r["mAP"] for r in rows if r["kind"] == "whole"}
    assert by_metric["plain"] == pytest.approx(by_metric["masked"], abs=0.5)  # a mask of 0.5 everywhere
    assert net.training
    means = summary(rows)
    assert means["whole"]["plain_mAP"] == pytest.approx(evaluate(net, query, gallery)["plain"]["mAP"])
    assert means["occluded"] == means["body"]


def test_both_sides_of_the_neck_are_those_of_two_networks_that_retrieve_there(parts):
    _, query, gallery = parts
    torch.manual_seed(0)
    net = DPM(TINY.replace(height=64, width_px=32))
    torch.nn.init.normal_(net.neck.running_mean)
    sets = {("body", 0.4): replace(query, pixels=query.pixels.flip(3))}
    before, both = net.spec, occlusion_curves(net, query, gallery, sets)
    assert net.spec is before and both["before"] != both["after"]
    for side in ("before", "after"):
        other = DPM(net.spec.replace(neck=side)).eval()
        other.load_state_dict(net.state_dict())
        wanted = evaluate(other, query, gallery)
        assert {r["metric"]: r["mAP"] for r in both[side] if r["kind"] == "whole"} == {
            metric: scored["mAP"] for metric, scored in wanted.items()
        }


def test_covered_queries_are_embedded_once_for_both_sides(parts, monkeypatch):
    _, query, gallery = parts
    net = DPM(TINY.replace(height=64, width_px=32))
    seen = []
    forward = net.backbone.forward
    monkeypatch.setattr(net.backbone, "forward", lambda x, **k: (seen.append(len(x)), forward(x, **k))[1])
    occlusion_curves(net, query, gallery, {("body", 0.4): query, ("body", 0.2): query})
    assert sum(seen) == 3 * len(query) + len(gallery)


def test_the_histogram_finds_equal_pictures(parts):
    _, _, gallery = parts
    moved = replace(gallery, cameras=gallery.cameras + 100)
    assert histogram_scores(moved, gallery)["rank1"] == 100.0


def test_spread_is_the_mean_distance_from_the_mean_over_its_length(parts):
    pixels = parts[2].pixels
    net = DPM(TINY.replace(height=64, width_px=32, neck="before")).train()
    f = net.eval()(to_input(pixels, net.spec.preprocessing))[0].detach().double().numpy()
    centre = f.mean(0)
    wanted = np.linalg.norm(f - centre, axis=1).mean() / np.linalg.norm(centre)
    assert spread(net.train(), pixels) == pytest.approx(wanted, rel=1e-3) and net.training
    assert spread(net, pixels[:1].expand(8, -1, -1, -1)) < 1e-5


def test_scores_of_a_checkpoint_come_with_the_floor_and_both_sides_of_the_neck(market, tmp_path, capsys):
    import json

    import scores

    from dpm_edge.model import checkpoint

    checkpoint.save(DPM(TINY.replace(height=64, width_px=32)), tmp_path / "net")
    words = [str(tmp_path / "net"), "--data", str(market), "--out", str(tmp_path / "scores.json")]
    assert scores.main(words) == 0
    found = json.loads((tmp_path / "scores.json").read_text())
    assert "machine" in found and list(found["sets"]) == [market.name]
    of_market = found["sets"][market.name]
    assert {"before neck", "after neck", "histogram"} <= set(of_market) and of_market["spread"] > 0
    assert of_market["pictures"] == {"query": 24, "gallery": 24}
    assert "colour histogram" in capsys.readouterr().out
