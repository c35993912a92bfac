"""Identities on made-up people whose features are known: what time and place allow, merges, splits, corrections."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dpm_edge import Gallery
from dpm_edge.errors import DataError, DpmError, EmbeddingsError
from dpm_edge.watch.decisions import Decision
from dpm_edge.watch.evidence import log_odds
from dpm_edge.watch.identities import Identities
from dpm_edge.watch.joint_decision import probabilities

D = 64
CAMERAS = ("door", "yard")


class World:
    """People with a look each, and identities that see crops of them."""

    def __init__(self, seed: int = 0, **options: object) -> None:
        self.rng = np.random.default_rng(seed)
        self.looks: dict[str, NDArray] = {}
        self.gallery = Gallery("made-up", D)
        self.identities = Identities(self.gallery, cameras=CAMERAS, **options)  # type: ignore[arg-type]

    def crop(self, person: str, noise: float = 0.5) -> NDArray[np.float32]:
        """A feature of a person: the look and noise of so many times its length."""
        if person not in self.looks:
            look = self.rng.normal(size=D)
            self.looks[person] = look / np.linalg.norm(look)
        feature = self.looks[person] + noise * self.rng.normal(size=D) / np.sqrt(D)
        return (feature / np.linalg.norm(feature)).astype(np.float32)[None]

    def see(
        self, camera: str, track: int, person: str, start: float, crops: int = 6, visibility: float = 1.0,
        noise: float = 0.5,
    ) -> Decision:  # fmt: skip
        """Show a track's crops, half a second apart; the decision after the last."""
        for i in range(crops):
            decision = self.identities.observe(
                camera, track, start + 0.5 * i, self.crop(person, noise), visibility=[visibility]
            )
        return decision


def test_a_track_is_pending_until_it_has_shown_enough() -> None:
    world = World()
    states = [world.see("door", 1, "anna", 0.5 * i, crops=1).state for i in range(4)]
    assert states == ["pending", "pending", "unknown", "unknown"]


def test_the_first_person_is_a_new_identity() -> None:
    decision = World().see("door", 1, "anna", 0)
    assert decision.state == "unknown" and decision.identity and decision.reason == "nobody alike"
    assert decision.probability == pytest.approx(1.0)


def test_somebody_who_comes_back_is_known() -> None:
    world = World()
    first = world.see("door", 1, "anna", 0)
    world.see("door", 2, "ben", 100)
    again = world.see("yard", 1, "anna", 200)
    assert again.state == "known" and again.identity == first.identity
    assert again.probability is not None and 0.6 <= again.probability <= 1
    assert again.candidates[0] == (first.identity, again.probability)


def test_strangers_stay_strangers() -> None:
    world = World()
    decisions = [world.see("door", i, f"person {i}", 100 * i) for i in range(12)]
    assert [one.state for one in decisions] == ["unknown"] * 12
    assert len({one.identity for one in decisions}) == 12


def test_nobody_is_in_two_places_at_once() -> None:
    world = World()
    world.see("door", 1, "anna", 0)
    world.see("door", 2, "anna", 100)  # she is back
    twin = world.see("yard", 1, "anna", 101)  # and looks the same elsewhere at the same time
    assert twin.state == "unknown"
    assert twin.identity != world.identities.decision("door", 2).identity  # type: ignore[union-attr]


def test_somebody_who_is_seen_elsewhere_again_is_not_given_up_for_who_came_later() -> None:
    world = World()
    first = world.see("door", 1, "anna", 0)
    world.see("door", 2, "anna", 100, crops=4)  # she is back, and not looked at for a moment
    twin = world.see("yard", 1, "anna", 102, crops=3)
    assert twin.identity == first.identity
    again = world.see("door", 2, "anna", 103.0, crops=2)
    assert again.identity == first.identity
    parted = world.identities.decision("yard", 1)
    assert parted is not None and parted.state == "unknown" and parted.previous_ids == (first.identity,)


def test_views_that_overlap_may_show_one_person_at_once() -> None:
    world = World(overlap=[("door", "yard")])
    first = world.see("door", 1, "anna", 0)
    world.see("door", 2, "anna", 100)
    assert world.see("yard", 1, "anna", 101).identity == first.identity


def test_a_way_takes_its_time() -> None:
    for gap, same in ((3.0, False), (12.0, True)):
        world = World(travel={("door", "yard"): 10.0})
        first = world.see("door", 1, "anna", 0, crops=4)
        world.identities.end("door", 1)
        assert (world.see("yard", 1, "anna", 1.5 + gap).identity == first.identity) is same


def test_the_way_back_has_a_time_of_its_own() -> None:
    world = World(travel={("door", "yard"): 10.0})
    first = world.see("yard", 1, "anna", 0, crops=4)
    world.identities.end("yard", 1)
    assert world.see("door", 1, "anna", 4.0).identity == first.identity


def test_two_tracks_of_one_picture_are_never_one_person() -> None:
    world = World()
    world.see("door", 1, "anna", 0)
    for i in range(8):
        seconds = 100 + 0.5 * i
        one = world.identities.observe("door", 2, seconds, world.crop("anna", 0.9))
        other = world.identities.observe("door", 3, seconds, world.crop("anna", 0.3))
    assert one.identity != other.identity


def test_the_likelier_of_two_rivals_gets_the_identity() -> None:
    world = World()
    first = world.see("door", 1, "anna", 0)
    world.looks["half"] = world.looks["anna"] + 0.9 * world.rng.normal(size=D) / np.sqrt(D)
    for i in range(12):
        seconds = 100 + 0.5 * i
        alike = world.identities.observe("door", 2, seconds, world.crop("half"))
        if i >= 3:
            anna = world.identities.observe("door", 3, seconds, world.crop("anna", 0.2))
    assert anna.identity == first.identity
    assert alike.identity != first.identity


def test_a_hidden_person_is_unknown_after_a_while_and_not_kept() -> None:
    world = World()
    decision = world.see("door", 1, "anna", 0, crops=12, visibility=0.1)
    assert decision.state == "unknown" and decision.reason == "low visibility" and decision.probability is None
    world.identities.finish()
    assert len(world.gallery) == 0


def test_a_late_match_is_a_merge_and_keeps_the_chain() -> None:
    world = World()
    first = world.see("door", 1, "anna", 0)
    world.see("yard", 7, "ben", 20)
    early = world.see("yard", 1, "stranger", 100, crops=3)
    assert early.state == "unknown"
    late = early
    for i in range(12):  # the first crops showed somebody else who walked before her
        late = world.see("yard", 1, "anna", 101.5 + 0.5 * i, crops=1, noise=0.2)
    assert late.state == "known" and late.identity == first.identity
    assert late.previous_ids == (early.identity,)
    merged = [one for one in world.identities.changes() if one.kind == "merged"]
    assert [(one.identity, one.into, one.track) for one in merged] == [(early.identity, first.identity, "1")]
    assert world.identities.changes() == []


def test_a_change_of_another_cameras_track_waits_until_that_camera_asks() -> None:
    world = World()
    world.see("door", 1, "anna", 0)
    old = world.see("yard", 7, "ben", 20).identity
    new = world.identities.split("yard", 7)
    assert world.identities.changes("door") == []
    assert [(one.kind, one.identity, one.into) for one in world.identities.changes("yard")] == [("split", old, new)]
    assert world.identities.changes() == []


def test_an_ended_tracks_best_crops_are_kept_with_time_and_place() -> None:
    world = World()
    decision = world.see("door", 1, "anna", 50, crops=20)
    world.identities.end("door", 1)
    rows = world.gallery.rows()
    assert len(rows) == 8 and set(rows.people) == {decision.identity}
    assert set(rows.cameras) == {"door"} and set(rows.tracks) == {"1"}
    assert rows.timestamps.min() >= 50


def test_a_track_ends_by_itself_when_nothing_comes() -> None:
    world = World()
    world.see("door", 1, "anna", 0)
    world.see("yard", 1, "ben", 10)
    assert world.identities.decision("door", 1) is None and len(world.gallery) == 6


def test_what_is_in_the_gallery_is_known_after_a_restart() -> None:
    world = World()
    first = world.see("door", 1, "anna", 0)
    world.identities.finish()
    world.identities = Identities(world.gallery, cameras=CAMERAS)
    assert world.see("yard", 1, "anna", 100).identity == first.identity


def test_new_identities_of_two_runs_differ() -> None:
    assert World().see("door", 1, "anna", 0).identity != World().see("door", 1, "anna", 0).identity


def test_a_merge_by_hand_moves_rows_and_tracks_and_later_decisions_follow() -> None:
    world = World()
    one = world.see("door", 1, "anna", 0).identity
    other = world.see("yard", 2, "anna in a coat", 100).identity
    assert one and other and one != other
    world.identities.merge(other, one)
    assert world.identities.decision("yard", 2).identity == one  # type: ignore[union-attr]
    again = world.see("door", 3, "anna in a coat", 200)
    assert again.identity == one
    world.identities.finish()
    assert set(world.gallery.rows().people) == {one}


def test_a_split_by_hand_is_respected_by_later_decisions() -> None:
    world = World()
    one = world.see("door", 1, "anna", 0).identity
    assert world.see("yard", 1, "anna", 100).identity == one
    new = world.identities.split("yard", 1)
    later = world.see("yard", 1, "anna", 103, crops=20)
    assert later.identity == new != one and later.previous_ids == (one,)


def test_a_split_of_an_ended_track_moves_its_rows_alone() -> None:
    world = World()
    one = world.see("door", 1, "anna", 0).identity
    world.see("yard", 1, "anna", 100)
    world.identities.finish()
    new = world.identities.split("yard", 1)
    rows = world.gallery.rows()
    assert {(camera, person) for camera, person in zip(rows.cameras, rows.people)} == {("door", one), ("yard", new)}


def test_names_are_kept_with_the_gallery() -> None:
    world = World()
    first = world.see("door", 1, "anna", 0)
    world.identities.name(first.identity or "", "Anna")
    world.identities.finish()
    world.identities = Identities(world.gallery)
    assert world.see("yard", 1, "anna", 100).name == "Anna"


def test_forgetting_leaves_nothing() -> None:
    world = World()
    first = world.see("door", 1, "anna", 0).identity
    world.identities.finish()
    assert first and world.identities.forget(first) == 6
    assert world.see("yard", 1, "anna", 100).identity != first


@pytest.mark.parametrize("absent", [7, 1, 2])
def test_who_is_elsewhere_makes_it_no_likelier_that_somebody_else_is_back(absent: int) -> None:
    likelihood = {f"p{i}": float(np.exp(i)) for i in range(absent)}
    prior = {**dict.fromkeys(likelihood, 1 / (2 * 7)), "new": 1 / 2}  # of seven people the others are elsewhere
    weight = {name: p * likelihood.get(name, 1.0) for name, p in prior.items()}
    ranked, new = probabilities({name: float(np.log(one)) for name, one in likelihood.items()}, 7)
    assert dict(ranked) == pytest.approx({n: weight[n] / sum(weight.values()) for n in likelihood})
    assert new == pytest.approx(weight["new"] / sum(weight.values()))


@pytest.mark.parametrize("centred", [False, True])
def test_odds_never_fall_with_similarity(centred: bool) -> None:
    odds = [log_odds(score, 0.1, 0.15, centred=centred) for score in np.linspace(-1, 1, 200)]
    assert (np.diff(odds) >= -1e-9).all()
    assert odds[0] < -2 and odds[-1] > 3


@pytest.mark.parametrize(
    ("features", "options", "error"),
    [
        (np.zeros((1, D + 1)), {}, DataError),
        (np.zeros(D), {}, EmbeddingsError),
        (np.full((1, D), np.nan), {}, EmbeddingsError),
        (np.ones((2, D)), {"visibility": [1.0]}, EmbeddingsError),
        (np.ones((1, D)), {"quality": [-1.0]}, DataError),
        (np.ones((1, D)), {"seconds": float("nan")}, DataError),
    ],
)
def test_bad_crops_are_refused(features: NDArray, options: dict, error: type[DpmError]) -> None:
    world = World()
    with pytest.raises(error, match="expected"):
        world.identities.observe("door", 1, options.pop("seconds", 0.0), features, **options)
    assert world.identities.decision("door", 1) is None


@pytest.mark.parametrize(
    "options",
    [
        {"travel": {("door", "cellar"): 3}},
        {"travel": {("door", "yard"): -1}},
        {"travel": {("door", "yard"): (9, 3)}},
        {"overlap": [("door", "cellar")]},
        {"probability": 1.0},
        {"least_views": 0},
    ],
)
def test_options_that_cannot_be_are_refused(options: dict) -> None:
    with pytest.raises(DataError, match="expected"):
        World(**options)


def test_a_merge_with_itself_and_a_split_of_nobody_are_refused() -> None:
    world = World()
    with pytest.raises(DataError, match="twice"):
        world.identities.merge("a", "a")
    with pytest.raises(DataError, match="has an identity"):
        world.identities.split("door", 5)
