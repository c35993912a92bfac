"""The model spec: presets, JSON there and back, and every contradiction refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dpm_edge.errors import SpecError
from dpm_edge.spec import PRESETS, ModelSpec, Preprocessing


@pytest.mark.parametrize(("name", "width", "heads"), [("dpm-b", 768, 12), ("dpm-s", 384, 6), ("dpm-t", 192, 3)])
def test_presets_are_vits_on_a_16_by_8_grid(name: str, width: int, heads: int) -> None:
    spec = PRESETS[name]
    assert (spec.name, spec.width, spec.heads, spec.layers, spec.grid) == (name, width, heads, 12, (16, 8))


@pytest.mark.parametrize(("stride", "grid"), [(16, (16, 8)), (12, (21, 10)), (11, (22, 11))])
def test_overlapping_patches_give_the_grids_of_the_papers(stride: int, grid: tuple[int, int]) -> None:
    assert PRESETS["dpm-b"].replace(stride=stride).grid == grid


@pytest.mark.parametrize("name", PRESETS)
def test_json_there_and_back(name: str) -> None:
    spec = PRESETS[name].replace(height=384, feature="concat", mask_mean=0.61)
    back = ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert back == spec and back.preprocessing.height == 384
    assert back.dimension == spec.width + spec.joint_dim


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"width": 100}, "divides into 12 heads, got 100"),
        ({"stride": 17}, "stride .*got 17"),
        ({"hmg": "big"}, "'big'"),
        ({"feature": "both"}, "'both'"),
        ({"mask_blocks": (2, 13)}, "13"),
        ({"mask_blocks": ()}, "mask_blocks"),
        ({"height": 48}, "grid"),
    ],
)
def test_contradictions_are_named(change: dict[str, Any], names: str) -> None:
    with pytest.raises(SpecError, match=names):
        PRESETS["dpm-b"].replace(**change)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"height": 8}, "8×128"),
        ({"color": "yuv"}, "'yuv'"),
        ({"std": (0.5, 0, 0.5)}, "std above 0"),
        ({"mean": (0.5, 0.5)}, "three numbers"),
        ({"interpolation": "bilinaer"}, "Did you mean 'bilinear'"),
    ],
)
def test_impossible_preprocessing_is_named(change: dict[str, Any], names: str) -> None:
    with pytest.raises(SpecError, match=names):
        Preprocessing(**change)


def test_unknown_and_missing_fields_are_named() -> None:
    data = PRESETS["dpm-t"].to_dict()
    with pytest.raises(SpecError, match=r"unknown field 'strid'.*Did you mean 'stride'"):
        ModelSpec.from_dict({**data, "strid": 12})
    with pytest.raises(SpecError, match="preprocessing: unknown field 'colour'"):
        ModelSpec.from_dict({**data, "preprocessing": {"colour": "rgb"}})
    del data["heads"]
    with pytest.raises(SpecError, match="missing field heads"):
        ModelSpec.from_dict(data)
    with pytest.raises(SpecError, match="expected an object"):
        ModelSpec.from_dict({**data, "weights": "mine"})
