"""Configs and recipes: overrides, their errors, and the way to JSON and back."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json

import pytest

from dpm_edge.errors import SpecError
from dpm_edge.train import config as configs
from dpm_edge.train.recipes import RECIPES, recipe


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_survives_json(name):
    made = recipe(name)
    assert made.recipe == name
    assert configs.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_overrides_change_what_they_name_and_leave_the_recipe_alone():
    before = recipe("market_tiny")
    after = configs.override(
        before, ["optimiser.lr=3e-4", "loss.masked=false", "schedule.step_at=3,5", "seed=7", "model.init=a=b"]
    )
    assert (after.optimiser.lr, after.loss.masked, after.schedule.step_at, after.seed) == (3e-4, False, (3, 5), 7)
    assert after.model.init == "a=b"
    assert before == recipe("market_tiny")


@pytest.mark.parametrize(
    ("word", "offered"),
    [
        ("optimiser.lrr=1", "optimiser.lr"),
        ("lr=1", "optimiser.lr"),
        ("los.margin=1", "loss.margin"),
        ("schedule.epochs", "schedule.epochs=20"),
        ("schedule.epochs=many", "many"),
        ("loss.masked=maybe", "maybe"),
    ],
)
def test_a_wrong_override_says_what_is_right(word, offered):
    with pytest.raises(SpecError, match=offered):
        configs.override(recipe("market_tiny"), [word])


def test_an_unknown_recipe_offers_the_nearest():
    with pytest.raises(SpecError, match="occluded_duke"):
        recipe("ocluded_duke")


def test_every_field_has_a_docstring():
    tree = ast.parse(inspect.getsource(configs))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and dataclasses.is_dataclass(getattr(configs, node.name)):
            for field, after in zip(node.body, node.body[1:] + [None]):
                if isinstance(field, ast.AnnAssign) and "Config" not in ast.unparse(field.annotation):
                    documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    assert documented, f"{node.name}.{ast.unparse(field.target)} has no docstring"
