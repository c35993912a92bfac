"""The exported graph against the network in torch."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_network import network

from dpm_edge.build import portable
from dpm_edge.build.export import OPSET, main, to_onnx


def run(model: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["feature", "mask"], {"images": images})


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"hmg": "paper", "stride": 12}, {"feature": "concat", "quick_gelu": True, "cameras": 3}],
    ids=["lite", "paper, overlapping", "concat, QuickGELU, cameras"],
)
def test_equals_torch_at_any_batch(changes: dict) -> None:
    net = network(**changes)
    before = copy.deepcopy(net.state_dict())
    model = to_onnx(net)
    assert before.keys() == net.state_dict().keys(), "folding BN must not reach the caller's network"
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    for batch in (1, 2, 7):
        images = torch.randn(batch, 3, 64, 64)
        with torch.no_grad():
            expected = net(images)
        for name, got, want in zip(portable.OUTPUTS, run(model, images.numpy()), expected):
            assert got.shape == (batch, net.spec.dimension)
            np.testing.assert_allclose(got, want.numpy(), atol=2e-5, err_msg=f"{name} at batch {batch}")


def test_the_graph_is_standard_and_says_nothing_of_the_machine(portable_path: Path) -> None:
    """Standard operators of opset 18, BN folded, and not a word of the machine that exported it."""
    model = onnx.load(portable_path)
    assert [(o.domain, o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")] == [("", OPSET)]
    kinds = {n.op_type for n in model.graph.node}
    assert "BatchNormalization" not in kinds and {"Conv", "MatMul", "Softmax", "LayerNormalization"} <= kinds
    assert {n.domain for n in model.graph.node} <= {"", "ai.onnx"}
    texts = [p.key for p in model.metadata_props]
    assert all(text.startswith("dpm_edge.") for text in texts)
    for node in model.graph.node:
        assert not node.metadata_props and not node.doc_string
    assert str(Path(__file__).parents[2]).encode() not in portable_path.read_bytes()


def test_the_command_writes_a_portable_onnx(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["export", str(checkpoint_path), str(tmp_path / "out.onnx"), "--half"])
    main()
    assert portable.read(tmp_path / "out.onnx").spec.name == "tiny"
