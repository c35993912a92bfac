"""float16 and bfloat16 written into the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from dpm_edge.build import low_precision, portable


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_only_products_run_in_the_low_type(precision: str, portable_path: Path) -> None:
    model = portable.read(portable_path).model
    lowered = low_precision.lower(model, precision)
    kind = low_precision.TYPES[precision][0]
    made_by = {out: node for node in lowered.graph.node for out in node.output}
    types = {t.name: t.data_type for t in lowered.graph.initializer}
    products = 0
    for node in lowered.graph.node:
        casts = [made_by[name] for name in node.input if name in made_by]
        if node.op_type in low_precision.PRODUCTS:
            products += 1
            assert all(c.op_type == "Cast" and c.attribute[0].i == kind for c in casts), node.name
            assert all(types[name] == kind for name in node.input if name in types), node.name
        else:
            assert all(types[name] != kind for name in node.input if name in types), node.name
    assert products == sum(n.op_type in low_precision.PRODUCTS for n in model.graph.node) > 0
    assert [o.type.tensor_type.elem_type for o in lowered.graph.output] == [TensorProto.FLOAT] * 2
    assert len(lowered.SerializeToString()) < 0.7 * len(model.SerializeToString())


def test_fp16_graph_computes_the_same_people(portable_path: Path) -> None:
    """By ONNX's own reference evaluator: ONNX Runtime is never given a float16 graph."""
    model = portable.read(portable_path).model
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    exact = ReferenceEvaluator(model).run(None, {"images": images})
    lowered = low_precision.lower(model, "fp16")
    onnx.checker.check_model(lowered)
    got = ReferenceEvaluator(lowered).run(None, {"images": images})
    assert (exact[0] * got[0]).sum(1).min() > 0.9999
    np.testing.assert_allclose(got[1], exact[1], atol=5e-3)
