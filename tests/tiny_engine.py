"""A tiny network with known arithmetic, written as ONNX by hand, and engine directories made of it.

feature = normalise(vec(average-pooled input) · P), mask = sigmoid(vec(average-pooled input) · G)
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dpm_edge import env
from dpm_edge.files import sha256
from dpm_edge.manifest import BatchRange, Manifest
from dpm_edge.spec import ModelSpec, Preprocessing
from dpm_edge.telemetry import import_openvino

SPEC = ModelSpec(
    name="tiny",
    width=24,
    heads=2,
    layers=2,
    mask_blocks=(1, 2),
    preprocessing=Preprocessing(height=64, width=64, mean=(0.4, 0.45, 0.5), std=(0.2, 0.25, 0.3)),
)
POOL = 16
FINGERPRINT = "tiny" * 16


def weights(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """P and G, each (3·4·4, 24)."""
    rng = np.random.default_rng(seed)
    inputs = 3 * (64 // POOL) ** 2
    return (
        rng.standard_normal((inputs, SPEC.width)).astype(np.float32),
        (0.3 * rng.standard_normal((inputs, SPEC.width))).astype(np.float32),
    )


def write_onnx(path: Path, seed: int = 0) -> Path:
    """The network as ONNX with a dynamic batch, input `images`, outputs `feature` and `mask`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    project, gate = weights(seed)
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[POOL, POOL], strides=[POOL, POOL]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "P"], ["raw"]),
        helper.make_node("ReduceL2", ["raw", "axis"], ["norm"]),
        helper.make_node("Div", ["raw", "norm"], ["feature"]),
        helper.make_node("MatMul", ["flat", "G"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["mask"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 64, 64])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", SPEC.width]) for n in ("feature", "mask")],
        [
            numpy_helper.from_array(project, "P"),
            numpy_helper.from_array(gate, "G"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 10
    onnx.save(model, path)
    return path


def write_portable(path: Path) -> Path:
    """The network as a portable ONNX: builds in moments, without torch."""
    import onnx

    from dpm_edge.build import portable

    path.parent.mkdir(parents=True, exist_ok=True)
    graph = onnx.load(write_onnx(path))
    for number, node in enumerate(graph.graph.node):
        node.name = f"{node.op_type}.{number}"
    portable.write(graph, path, SPEC, FINGERPRINT)
    return path


def expected(images: list[NDArray[np.uint8]], seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Feature and mask of BGR pictures in float64, without a line of the package: resize, normalise, pool, project."""
    project, gate = weights(seed)
    flat = []
    for image in images:
        small = cv2.resize(image, (64, 64), interpolation=cv2.INTER_LINEAR)[:, :, ::-1].astype(np.float64) / 255
        small = (small - np.array([0.4, 0.45, 0.5])) / np.array([0.2, 0.25, 0.3])
        flat.append(small.reshape(4, POOL, 4, POOL, 3).mean(axis=(1, 3)).transpose(2, 0, 1).ravel())
    raw = np.array(flat).reshape(len(images), -1) @ project.astype(np.float64)
    mask = 1 / (1 + np.exp(-np.array(flat).reshape(len(images), -1) @ gate.astype(np.float64)))
    return raw / np.linalg.norm(raw, axis=1, keepdims=True), mask


def people(count: int, seed: int = 1) -> list[NDArray[np.uint8]]:
    """Coloured pictures of different sizes."""
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        height, width = int(rng.integers(40, 150)), int(rng.integers(20, 80))
        blocks = rng.integers(0, 256, (4, 3, 3), np.uint8)
        pictures.append(cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST))
    return pictures


def write_engine(folder: Path, backend: str = "onnxruntime", seed: int = 0, **changes: Any) -> Path:
    """An engine directory of the tiny network, as `dpm-edge build` would leave it; `changes` go to the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    write_onnx(folder / "model.onnx", seed)
    engine = "model.onnx"
    if backend == "openvino":
        openvino = import_openvino("this engine")
        openvino.save_model(
            openvino.convert_model(folder / "model.onnx"), folder / "engine.xml", compress_to_fp16=False
        )
        engine = "engine.xml"
    (crop,) = people(1, seed=99)
    feature, mask = expected([crop], seed)
    np.savez(folder / "golden.npz", crop=crop, feature=feature[0].astype(np.float32), mask=mask[0].astype(np.float32))
    fields: dict[str, Any] = {
        "spec": SPEC,
        "fingerprint": FINGERPRINT,
        "backend": backend,
        "precision": "fp32",
        "batch": BatchRange(low=1, best=4, high=8),
        "engine": engine,
        "files": {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.name != "manifest.json"},
        "device": "CPU",
        "libraries": env.versions(),
        "verification": {"golden_cosine": 0.999},
    }
    Manifest(**{**fields, **changes}).write(folder)
    return folder


def embedded_by_eight_threads(engine: Any, work: list[Any]) -> dict[int, Any]:
    """What eight threads that start together make of `work`, by place in it."""
    results: dict[int, Any] = {}
    start = threading.Barrier(8)

    def embed(first: int) -> None:
        start.wait()
        for index in range(first, len(work), 8):
            results[index] = engine.embed(work[index])

    threads = [threading.Thread(target=embed, args=(t,)) for t in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
