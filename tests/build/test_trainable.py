"""An ONNX of another project becomes a checkpoint: its features, trainable weights, and engines that follow them."""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_engine
import torch
from click.testing import CliRunner
from foreign_network import PREPROCESSING, network, save, single
from onnx import ModelProto, TensorProto, helper, numpy_helper
from test_imported import network as imported_network

from dpm_edge import Engine, env
from dpm_edge.build import build, foreign, trainable
from dpm_edge.build.foreign import ForeignOptions
from dpm_edge.cli.commands import main
from dpm_edge.errors import CheckpointError
from dpm_edge.images import preprocess
from dpm_edge.model import checkpoint
from dpm_edge.model.foreign_network import ForeignNetwork

OPTIONS = ForeignOptions(**PREPROCESSING)
PEOPLE = tiny_engine.people(5)
F = TensorProto.FLOAT
EXPORTS: dict[str, tuple[int, bool]] = {"osnet": (12, False), "transreid": (16, True)}
"""Network of convolutions, of attention → operator set, whether its batch is free."""


@pytest.fixture(scope="module", params=EXPORTS)
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX as torch's older exporter writes it; its input is called images, its output embedding."""
    opset, free = EXPORTS[request.param]
    net = imported_network(request.param)
    pre = net.spec.preprocessing
    path = tmp_path_factory.mktemp("theirs") / f"{request.param}.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.body,
            (torch.zeros(1, 3, pre.height, pre.width),),
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=["images"],
            output_names=["embedding"],
            dynamic_axes={"images": {0: "batch"}, "embedding": {0: "batch"}} if free else None,
        )
    return path


def in_onnxruntime(path: Path, images: np.ndarray) -> np.ndarray:
    """The features of the file itself, one picture at a time, of length 1."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rows = np.concatenate([session.run(["embedding"], {session.get_inputs()[0].name: one[None]})[0] for one in images])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@torch.no_grad()
def in_torch(net: ForeignNetwork) -> np.ndarray:
    return net(torch.from_numpy(preprocess(PEOPLE, net.spec.preprocessing)))[0].numpy()


def in_an_engine(weights: Path, out: Path, crops: Path) -> np.ndarray:
    build(weights, out, backend="onnxruntime", calibrate=crops, progress=False)
    with Engine.load(out) as engine:
        return engine.embed(PEOPLE).features


def loaded(path: Path) -> ForeignNetwork:
    net = checkpoint.load_any(path)
    assert isinstance(net, ForeignNetwork)
    return net


def train(net: ForeignNetwork) -> None:
    """A step away from the features that it gives."""
    net.train()
    pictures = torch.from_numpy(preprocess(PEOPLE, net.spec.preprocessing))
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    similarity = torch.nn.functional.normalize(net.forward_train(pictures).neck, dim=1)
    (similarity @ similarity.T).sum().backward()
    optimiser.step()
    net.eval()


def test_features_are_the_files_own_before_and_after_a_build(theirs: Path, crops: Path, tmp_path: Path) -> None:
    net = trainable.read(theirs, OPTIONS)
    path = checkpoint.save(net, tmp_path / "ours")
    wanted = in_onnxruntime(theirs, preprocess(PEOPLE, net.spec.preprocessing))
    assert np.ptp(wanted @ wanted.T) > 1e-4  # pictures differ
    np.testing.assert_allclose(in_torch(loaded(path)), wanted, atol=1e-5)
    np.testing.assert_allclose(in_an_engine(path, tmp_path / "engine", crops), wanted, atol=1e-5)


def test_a_step_of_training_changes_the_weights_and_the_engine_follows(
    theirs: Path, crops: Path, tmp_path: Path
) -> None:
    net = trainable.read(theirs, OPTIONS)
    before, fixed = in_torch(net), set(net.network["fixed"])
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    train(net)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name]) == (name.rpartition(".")[2] in fixed), name
    after = in_torch(net)
    assert np.abs(after - before).max() > 1e-3
    path = checkpoint.save(net, tmp_path / "trained")
    np.testing.assert_allclose(in_torch(loaded(path)), after, atol=1e-6)
    np.testing.assert_allclose(in_an_engine(path, tmp_path / "engine", crops), after, atol=1e-5)


@torch.inference_mode()
def test_it_runs_on_another_device_and_in_bfloat16(theirs: Path) -> None:
    """On the device meta, as on a GPU, tensors that lie elsewhere are refused; it computes sizes alone."""
    net = trainable.read(theirs, OPTIONS)
    pictures = torch.from_numpy(preprocess(PEOPLE, net.spec.preprocessing))
    wanted = net(pictures)[0]
    half = copy.deepcopy(net).to(torch.bfloat16)(pictures.bfloat16())[0]
    assert torch.nn.functional.cosine_similarity(half, wanted).min() > 0.99
    assert net.to("meta")(pictures.to("meta"))[0].shape == wanted.shape


def normed() -> ModelProto:
    """Products and a batch norm that nothing folds; one weight serves twice."""
    model, draw = network(), np.random.default_rng(1)
    size = model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    square = draw.standard_normal((size, size)) / size**0.5
    norm = {"scale": draw.uniform(0.5, 2, size), "shift": draw.normal(size=size), "mean": draw.normal(size=size)}
    norm |= {"variance": draw.uniform(0.5, 2, size), "S": square}
    model.graph.initializer.extend(numpy_helper.from_array(v.astype(np.float32), k) for k, v in norm.items())
    model.graph.node[2].output[0] = "a"
    model.graph.node.extend(
        [
            helper.make_node("MatMul", ["a", "S"], ["b"]),
            helper.make_node("Sigmoid", ["b"], ["c"]),
            helper.make_node("MatMul", ["c", "S"], ["d"]),
            helper.make_node("Sigmoid", ["d"], ["e"]),
            helper.make_node("BatchNormalization", ["e", "scale", "shift", "mean", "variance"], ["embedding"]),
        ]
    )
    return model


def test_a_weight_that_serves_twice_stays_one_and_statistics_are_kept(crops: Path, tmp_path: Path) -> None:
    onnx.save(normed(), tmp_path / "theirs.onnx")
    net = trainable.read(tmp_path / "theirs.onnx", OPTIONS)
    assert sorted(net.network["trained"]) == ["t_P", "t_S", "t_scale", "t_shift"]
    assert sorted(net.network["fixed"]) == ["t_mean", "t_variance"]
    pictures = preprocess(PEOPLE, net.spec.preprocessing)
    np.testing.assert_allclose(in_torch(net), in_onnxruntime(tmp_path / "theirs.onnx", pictures), atol=1e-5)
    train(net)
    path = checkpoint.save(net, tmp_path / "trained")
    np.testing.assert_allclose(in_an_engine(path, tmp_path / "engine", crops), in_torch(net), atol=1e-5)


def test_an_engine_has_the_checkpoints_fingerprint_and_torch_runs_it_too(crops: Path, tmp_path: Path) -> None:
    net = trainable.read(save(tmp_path / "theirs.onnx"), ForeignOptions(**PREPROCESSING, licence="MIT"))
    path = checkpoint.save(net, tmp_path / "ours")
    manifest = build(path, tmp_path / "engine", backend="torch", calibrate=crops, progress=False)
    assert manifest.fingerprint == checkpoint.fingerprint(net) and manifest.spec.weights.licence == "MIT"
    assert manifest.spec.weights.recipe == "theirs.onnx, imported as an ONNX" and not manifest.spec.masks
    with Engine.load(tmp_path / "engine") as engine:
        np.testing.assert_allclose(engine.embed(PEOPLE).features, tiny_engine.expected(PEOPLE)[0], atol=2e-5)


def test_an_openvino_ir_is_read_alike(tmp_path: Path) -> None:
    import openvino

    openvino.save_model(
        openvino.convert_model(save(tmp_path / "theirs.onnx")), tmp_path / "theirs.xml", compress_to_fp16=False
    )
    net = trainable.read(tmp_path / "theirs.xml", OPTIONS)
    assert net.network["trained"]
    np.testing.assert_allclose(in_torch(net), tiny_engine.expected(PEOPLE)[0], atol=2e-5)


def test_names_of_tensors_may_be_anything(tmp_path: Path) -> None:
    model = network(output="embedding")
    odd = {"pooled": "forward", "flat": "a.b/c:0", "P": "a_b_c_0", "shape": "größe (x,y)"}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [odd.get(name, name) for name in names]
    for tensor in model.graph.initializer:
        tensor.name = odd[tensor.name]
    onnx.save(model, tmp_path / "theirs.onnx")
    net = loaded(checkpoint.save(trainable.read(tmp_path / "theirs.onnx", OPTIONS), tmp_path / "ours"))
    np.testing.assert_allclose(in_torch(net), tiny_engine.expected(PEOPLE)[0], atol=2e-5)


def test_a_difference_from_onnx_runtime_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dpm_edge.model.imported import onnx_operators

    monkeypatch.setitem(onnx_operators.OPERATORS, "MatMul", lambda inputs, attributes: (inputs[0] + 0.01) @ inputs[1])
    with pytest.raises(CheckpointError, match=r"that ONNX Runtime gives for theirs\.onnx, got others from torch \(by"):
        trainable.read(save(tmp_path / "theirs.onnx"), OPTIONS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes": ["y = Eval(x) {}"]}, "node 'y = Eval"),
        ({"nodes": ["y = Relu(nothing) {}"]}, "node of nothing, which nothing before it makes"),
        ({"feature": "other"}, "feature 'other'"),
        ({"constants": {"t_shape": "[1]"}}, "constant"),
        ({"trained": {"t_P": "3xy"}}, "arguments of onnx"),
        ({"trained": {"t_P": [48, 24]}}, "arguments of onnx"),
        ({"constants": 3}, "arguments of onnx"),
    ],
)
def test_a_graph_that_was_edited_is_one_line(change: dict, message: str, tmp_path: Path) -> None:
    path = checkpoint.save(trainable.read(save(tmp_path / "theirs.onnx"), OPTIONS), tmp_path / "ours")
    card = json.loads(path.with_suffix(".json").read_text())
    card["network"].update(change)
    path.with_suffix(".json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=message) as raised:
        checkpoint.load_any(path)
    assert len(str(raised.value)) < 1000


def test_another_graph_beside_the_weights_is_noticed(tmp_path: Path) -> None:
    path = checkpoint.save(trainable.read(save(tmp_path / "theirs.onnx"), OPTIONS), tmp_path / "ours")
    text = path.with_suffix(".json").read_text()
    changed = re.sub(r"\[16, 16\]", "[8, 8]", text)
    assert changed != text
    path.with_suffix(".json").write_text(changed)
    with pytest.raises(CheckpointError, match="do not belong together"):
        checkpoint.load_any(path)


def unknown() -> ModelProto:
    model = network()
    model.graph.node[2].output[0] = "before"
    model.graph.node.append(helper.make_node("Asinh", ["before"], ["embedding"]))
    return model


def truncated() -> bytes:
    data = network().SerializeToString()
    return data[: len(data) // 2]


def detector() -> ModelProto:
    model = single("Reshape", F, [1, 3, 64, 64], F, [1, 84, 128])
    model.graph.node[0].input.append("sizes")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 96, 128]), "sizes"))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.shape.dim.extend(
        onnx.TensorShapeProto.Dimension(dim_value=v) for v in (1, 96, 128)
    )
    return model


BAD: dict[str, tuple[Callable[[], ModelProto | bytes], str]] = {
    "detector": (detector, r"expected a feature \(batch, D\), got .* looks like the boxes of a detector"),
    "unknown operator": (unknown, "expected operators that can be trained in torch, got Asinh in theirs.onnx"),
    "truncated": (truncated, "expected .*theirs.onnx"),
    "text": (lambda: b"no network", "expected .*theirs.onnx"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_imported_is_one_line_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    make, message = BAD[case]
    made = make()
    (tmp_path / "theirs.onnx").write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
    refused(tmp_path, message)


def test_a_use_of_an_operator_that_torch_has_not_is_one_line(tmp_path: Path) -> None:
    model = network()
    model.graph.node[2].input[0] = "cast"
    model.graph.node.insert(2, helper.make_node("Cast", ["bytes"], ["cast"], to=F))
    model.graph.node.insert(2, helper.make_node("Cast", ["flat"], ["bytes"], to=TensorProto.INT8))
    onnx.save(model, tmp_path / "theirs.onnx")
    refused(tmp_path, "trained in torch, got Cast with to=3 in theirs.onnx")


def test_one_of_our_own_files_is_refused(tmp_path: Path) -> None:
    tiny_engine.write_portable(tmp_path / "theirs.onnx")
    refused(tmp_path, "expected another project's ONNX, got .* which dpm-edge wrote")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    refused(tmp_path, "theirs.onnx, which does not exist")


@pytest.mark.parametrize("library", ["torch", "onnx", "onnxruntime"])
def test_a_missing_library_says_what_to_install(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "theirs.onnx")
    monkeypatch.setattr(env, "installed", lambda name: name != library)
    refused(tmp_path, rf"expected {library} for importing an ONNX, got none .* pip install 'dpm-edge\[build\]'")


def refused(tmp_path: Path, message: str) -> None:
    """The command ends with one line that matches, and leaves nothing behind."""
    out = tmp_path / "out"
    said = [f"--{name}={value}" for name, value in PREPROCESSING.items()]
    result = CliRunner().invoke(main, ["import", "onnx", str(tmp_path / "theirs.onnx"), *said, "-o", str(out / "x")])
    line = result.stderr.strip()
    assert result.exit_code == 1 and "\n" not in line, line
    assert re.search(message, line), line
    assert not out.exists()


def test_the_command_writes_a_checkpoint_and_says_what_it_is(tmp_path: Path) -> None:
    path = save(tmp_path / "theirs.onnx")
    arguments = ["import", "onnx", str(path), "--family", "torchreid", "-o", str(tmp_path / "ours"), "--json"]
    result = CliRunner().invoke(main, arguments)
    facts = json.loads(result.stdout)
    net = loaded(tmp_path / "ours")
    assert facts["fingerprint"] == checkpoint.fingerprint(net) and facts["model"] == net.spec.to_dict()
    assert net.spec.preprocessing == foreign.read(path, ForeignOptions(family="torchreid")).spec.preprocessing


def test_options_of_an_onnx_are_refused_for_a_projects_checkpoint(tmp_path: Path) -> None:
    arguments = ["import", "torchreid", "x.pt", "--color", "rgb", "--feature", "f", "-o", str(tmp_path / "ours")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "with onnx only, got torchreid" in result.stderr
    assert "--color" in result.stderr and "--feature" in result.stderr
