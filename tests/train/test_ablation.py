"""The ablation: what it plans from measured times, that it goes on where it was stopped, and its table."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import ablation
import ablation_plan
import pytest
from ablation import AblationBudget, ablate
from ablation_plan import CURVES, RESERVE, Measured, choose, jobs, waves
from toy_world import SMALL

from dpm_edge.errors import SpecError


def test_every_row_comes_once_the_cheapest_first_then_the_ends_again():
    todo = jobs(["full, alternating", "baseline", "+HMG", "full"], 3)
    assert todo[:4] == [("baseline", 0), ("+HMG", 0), ("full", 0), ("full, alternating", 0)]
    assert todo[4:] == [("baseline", 1), ("full", 1), ("baseline", 2), ("full", 2)]


def test_runs_go_to_the_place_that_is_free_first():
    todo = [("baseline", 0), ("full", 0), ("full, alternating", 0), ("+SPT", 0)]
    assert waves(todo, 1) == 5 and waves(todo, 2) == 3 and waves(todo, 4) == 2


def test_the_plan_with_the_most_epochs_is_taken_and_fits():
    rows = ["baseline", "full", "+SPT", "+HMG", "+HEM", "full, erasing for SPT", "full, from scratch"]
    todo = jobs(rows, 3)
    measured = {  # an H100's first try: a step alone, four and eleven at a time
        1: Measured(0.047, 10, 65),
        4: Measured(0.062, 10, 65),
        11: Measured(0.160, 10, 65),
    }
    seconds = 28 * 60
    plan = choose(measured, todo, seconds)
    by_hand = {
        p: int((RESERVE * seconds / rounds - 10 - CURVES) / (65 * measured[p].seconds))
        for p, rounds in ((1, 11), (4, 3), (11, 1))
    }
    assert plan.epochs == max(by_hand.values()) == by_hand[plan.parallel]
    assert waves(todo, plan.parallel) * plan.seconds <= seconds
    assert plan.seconds - 10 - plan.epochs * 65 * measured[plan.parallel].seconds >= 90
    slower = choose({p: Measured(3 * m.seconds, m.start, m.steps) for p, m in measured.items()}, todo, seconds)
    assert 1 <= slower.epochs < plan.epochs
    with pytest.raises(SpecError, match=r"11 runs do not fit in 1\.0 minutes.* \d+ minutes fit"):
        choose(measured, todo, 60)


def test_numbers_of_runs_to_measure():
    wanted = {1: [1], 2: [1, 2], 3: [2, 3], 6: [2, 4, 6], 8: [2, 4, 8]}
    assert {most: ablation_plan.candidates(most) for most in wanted} == wanted


def test_the_row_that_needs_texts_names_the_file():
    with pytest.raises(SpecError, match=r"ViT-B-16\.safetensors.*loss\.texts=texts\.safetensors"):
        ablation_plan.check_rows(["+anchoring"], [])
    ablation_plan.check_rows(["+anchoring"], ["loss.texts=t.safetensors"])
    with pytest.raises(SpecError, match="baseline"):
        ablation_plan.check_rows(["base"], [])


class Threads(ThreadPoolExecutor):
    """Workers that share the test's toy preset."""

    def __init__(self, workers, context=None):
        super().__init__(1)


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_a_stopped_ablation_goes_on_with_its_plan_and_its_finished_runs(market, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(ablation_plan, "MEASURED_STEPS", 2)

    def one_epoch(measured, todo, seconds):
        assert list(measured) == [1] and measured[1].seconds > 0 and measured[1].steps >= 2
        return ablation_plan.AblationPlan(1, 1, 1.0)

    monkeypatch.setattr(ablation, "choose", one_epoch)
    trained: list[str] = []
    train_row = ablation.train_row

    def counted(recipe, data, out, words):
        trained.append(out.name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train_row(recipe, data, out, words)

    monkeypatch.setattr(ablation, "train_row", counted)
    words = [w for w in SMALL if not w.startswith("schedule.")] + ["evaluate.occlusion=true", "evaluate.shares=0.3"]
    settings = {"rows": ["baseline", "full"], "seeds": 2, "budget": AblationBudget(minutes=60, parallel=1)}
    with pytest.raises(KeyboardInterrupt):
        ablate("market_tiny", market, tmp_path, words, **settings)
    first = json.loads((tmp_path / "ablation.json").read_text())
    assert [line["row"] for line in first["table"]] == ["baseline"] and len(first["left"]) == 3
    epochs = first["plan"]["epochs"]
    assert first["runs"][0]["epochs"] == epochs == 1
    done = ablate("market_tiny", market, tmp_path, words, **settings)
    assert trained == ["baseline-seed0", "full-seed0", "full-seed0", "baseline-seed1", "full-seed1"]
    assert {(line["row"], line["seeds"], line["epochs"]) for line in done["table"]} == {
        ("baseline", 2, epochs),
        ("full", 2, epochs),
    }
    assert not done["left"] and done["runs"][0]["occlusion"]
    again = ablate("market_tiny", market, tmp_path, words, **settings)
    assert again["table"] == done["table"] and len(trained) == 5
    with pytest.raises(SpecError, match="another overrides"):
        ablate("market_tiny", market, tmp_path, [*words, "seed=3"], **{**settings, "seeds": 3})
