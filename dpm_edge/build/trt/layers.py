"""How many layers compute in which precision: of the plan where it can be opened, of the network where it cannot."""

from __future__ import annotations

import json
import re
from collections import Counter
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorrt

WORDS = (
    ("bf16", r"bf16|bfloat16"),
    ("fp8", r"fp8|float8"),
    ("fp16", r"fp16|half"),
    ("int8", r"int8"),
    ("fp32", r"fp32|float"),
)
"""Precision → what the engine inspector calls it, which differs between versions: "Half", "Row major linear FP16
format". The first that fits counts."""


def of_network(trt: ModuleType, network: tensorrt.INetworkDefinition) -> dict[str, int]:
    """Layers of a typed network by the type of their first output, before the builder fuses them."""
    names = {
        trt.DataType.FLOAT: "fp32",
        trt.DataType.HALF: "fp16",
        trt.DataType.BF16: "bf16",
        trt.DataType.INT8: "int8",
        trt.DataType.FP8: "fp8",
    }
    counts: Counter[str] = Counter()
    for index in range(network.num_layers):
        layer: tensorrt.ILayer = network.get_layer(index)
        if layer.num_outputs:
            counts[names.get(layer.get_output(0).dtype, "other")] += 1
    return dict(sorted(counts.items()))


def of_plan(information: str) -> dict[str, int]:
    """Layers of a built plan by the type of their first output, from the engine inspector's JSON."""
    counts: Counter[str] = Counter()
    for layer in json.loads(information).get("Layers", ()):
        if not isinstance(layer, dict):
            continue  # names only: the plan was built without details
        outputs = layer.get("Outputs") or [{}]
        counts[_precision(str(outputs[0].get("Format/Datatype", "")))] += 1
    return dict(sorted(counts.items()))


def _precision(text: str) -> str:
    """A precision from the inspector's words; "other" for integers, booleans and what is not known."""
    lower = text.lower()
    return next((name for name, words in WORDS if re.search(words, lower)), "other")
