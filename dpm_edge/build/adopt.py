"""Somebody else's ONNX graph turned into the portable form: input `images`, outputs `feature` and `mask`.

Every step keeps what the network computes: float16 becomes float32, an older operator set becomes OPSET, a fixed batch
becomes free, constants are folded. `check_same` then runs both and compares. n pictures · D feature dimensions
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dpm_edge.build import portable
from dpm_edge.errors import CheckpointError
from dpm_edge.metrics import normalise
from dpm_edge.telemetry import import_onnxruntime

OPSET = 18
"""Operator set of the portable form; an older graph is converted, a newer one stays what it is."""
PREFIX = "net."
"""Before every name of the adopted graph, so that none is one of ours."""
SAME_COSINE = 0.9999
"""Least cosine between the features of the file and of what became of it."""
RAW = "tail.raw"
"""The feature (batch, D) before it is divided by its norm."""
TINY_NORM = 1e-6
"""Floor of the L2 norm that a feature is divided by: a feature of zeros stays zeros."""

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Input (n, 3, H, W) → feature (n, D), as the file gives it."""


def adopt(model: ModelProto, image: str, feature: str, height: int, width: int, dimension: int) -> ModelProto:
    """A graph in the portable form, without its metadata.

    Args:
        model: a float32 or float16 graph with all of its weights; not changed.
        image: its input, (batch, 3, height, width).
        feature: one of its tensors, (batch, D) or (batch, D, 1, 1).
        height, width: of the input, pixels.
        dimension: D.

    Raises:
        CheckpointError: an operator is not standard, or no converter brings the graph to OPSET.
    """
    made = ModelProto()
    made.CopyFrom(model)
    prepare(made, image, feature)
    made = _to_opset(made)
    _free_batch(made, image, height, width)
    made = _folded(made)
    made = onnx.compose.add_prefix(made, PREFIX)
    finish(made, PREFIX + image, PREFIX + feature, (height, width), dimension)
    return made


def finish(model: ModelProto, image: str, feature: str, size: tuple[int, int], dimension: int) -> None:
    """Make a graph of free batch the portable form, in place: its input and outputs, and a name for every node.

    Raises:
        CheckpointError: an operator is not standard.
    """
    _add_outputs(model, image, feature, size, dimension)
    _name_nodes(model)
    portable.check_standard(model)


def prepare(model: ModelProto, image: str, feature: str) -> None:
    """Leave in a graph, in place, what leads from the image to the feature, in float32, constants as initialisers."""
    _lift_constants(model)
    _to_float32(model)
    _cut(model, image, feature)
    _spell_out_norms(model)


def session(model: ModelProto | Path) -> Any:
    """An ONNX Runtime session on the CPU, silent.

    Raises:
        CheckpointError: ONNX Runtime refuses the graph.
        MissingLibrary: onnxruntime is not installed.
    """
    onnxruntime = import_onnxruntime("reading another project's ONNX")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes, which differ from version to version
        raise CheckpointError(f"expected a graph that ONNX Runtime can run, got: {_first_line(error)}.") from error


def check_same(adopted: ModelProto, original: Run, inputs: NDArray[np.float32], name: str) -> None:
    """Compare the adopted graph on all inputs at once with the original on each alone.

    Args:
        adopted: what `adopt` made.
        original: runs the file; it may take one picture at a time only.
        inputs: (n, 3, H, W), n of 2 or more.
        name: of the file, for messages.

    Raises:
        CheckpointError: they differ, or one gives NaN or infinity, or cannot take more than one picture.
    """
    wanted = np.concatenate([original(inputs[i : i + 1]) for i in range(len(inputs))])
    if not np.isfinite(wanted).all():
        raise CheckpointError(
            f"expected finite features, got NaN or infinity from {name} itself. Check the scaling of its input "
            "(--mean, --std) and its weights."
        )
    advice = "Export it again with a free batch, such as torch.onnx.export(…, dynamic_axes={'images': {0: 'batch'}})."
    try:
        got = session(adopted).run(["feature"], {portable.INPUT: inputs})[0]
    except Exception as error:
        raise CheckpointError(
            f"expected a network that takes several pictures at once, got {name}, whose batch is fixed inside "
            f"({_first_line(error)}). {advice}"
        ) from error
    if got.shape != wanted.shape:
        raise CheckpointError(f"expected features {wanted.shape} of {name}, got {got.shape}. {advice}")
    cosines = np.sum(normalise(wanted.astype(np.float64)) * normalise(got.astype(np.float64)), axis=1)
    if not cosines.min() >= SAME_COSINE:
        raise CheckpointError(
            f"expected the features that {name} gives one picture at a time, got others for several at once (cosine "
            f"{cosines.min():.4f}). {advice}"
        )


def depending(model: ModelProto, image: str) -> set[str]:
    """Names of all tensors that depend on the image."""
    found = {image}
    for node in model.graph.node:
        if found.intersection(node.input):
            found.update(node.output)
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]


def _lift_constants(model: ModelProto) -> None:
    """Constant nodes become initialisers, and initialisers are no inputs (as files of IR version 3 have them)."""
    graph, nodes = model.graph, []
    for node in graph.node:
        value = next((a for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value.t)
            tensor.name = node.output[0]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    weights = {t.name for t in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 8)


def _to_float32(model: ModelProto) -> None:
    """Every float16 type, weight and cast of the graph becomes float32; nothing where there is none."""
    graph = model.graph
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    for tensor in graph.initializer:
        _widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
            elif attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _cut(model: ModelProto, image: str, feature: str) -> None:
    """Leave of a graph what leads from the image to the feature."""
    graph = model.graph
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(feature, TensorProto.FLOAT, None))
    wanted, kept = {feature}, []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    weights = [t for t in graph.initializer if t.name in wanted]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    inputs = [value for value in graph.input if value.name == image]
    del graph.input[:]
    graph.input.extend(inputs)
    del model.metadata_props[:]
    model.doc_string = graph.doc_string = ""


def _spell_out_norms(model: ModelProto) -> None:
    """MeanVarianceNormalization as (x − mean) / sqrt(mean((x − mean)²) + 1e-9).

    ONNX's own definition takes E[x²] − E[x]², which rounding makes negative where a channel hardly varies: ONNX Runtime
    then gives NaN for a network that OpenVINO runs well.
    """
    graph, nodes = model.graph, []
    for number, node in enumerate(graph.node):
        if node.op_type != "MeanVarianceNormalization":
            nodes.append(node)
            continue
        axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), [0, 2, 3])
        root, x = f"norm.{number}", node.input[0]
        graph.initializer.append(numpy_helper.from_array(np.float32(1e-9), f"{root}.tiny"))
        nodes += [
            _mean(model, x, axes, f"{root}.mean"),
            helper.make_node("Sub", [x, f"{root}.mean"], [f"{root}.centred"]),
            helper.make_node("Mul", [f"{root}.centred", f"{root}.centred"], [f"{root}.square"]),
            _mean(model, f"{root}.square", axes, f"{root}.variance"),
            helper.make_node("Add", [f"{root}.variance", f"{root}.tiny"], [f"{root}.floor"]),
            helper.make_node("Sqrt", [f"{root}.floor"], [f"{root}.deviation"]),
            helper.make_node("Div", [f"{root}.centred", f"{root}.deviation"], [node.output[0]]),
        ]
    _set_nodes(model, nodes)


def _mean(model: ModelProto, x: str, axes: list[int], out: str) -> NodeProto:
    """A ReduceMean, which takes its axes as an input from operator set 18 on."""
    if _version(model) < 18:
        return helper.make_node("ReduceMean", [x], [out], axes=axes, keepdims=1)
    model.graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), f"{out}.axes"))
    return helper.make_node("ReduceMean", [x, f"{out}.axes"], [out], keepdims=1)


def _version(model: ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def _set_nodes(model: ModelProto, nodes: list[NodeProto]) -> None:
    kept = [NodeProto.FromString(node.SerializeToString()) for node in nodes]  # `del` frees those in the graph
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _to_opset(model: ModelProto) -> ModelProto:
    """The graph in OPSET, by onnx's own converter; as it is where it is that or newer."""
    version = _version(model)
    if version >= OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # a plain RuntimeError or its own ConvertError
        raise CheckpointError(
            f"expected a graph of operator set {OPSET} or one that onnx converts to it, got operator set {version} "
            f"({_first_line(error)}). Export it again with opset_version={OPSET}."
        ) from error


def _free_batch(model: ModelProto, image: str, height: int, width: int) -> None:
    """Let the first dimension of the image be any number, and mend what was written down for a fixed one.

    A Reshape to constants keeps them but for the first, where the batch is; a constant that stands beside the image's
    tensors in a Concat (a class token) is repeated for each picture. What this does not reach, `check_same` finds.
    """
    graph = model.graph
    shape = graph.input[0].type.tensor_type.shape
    fixed = shape.dim[0].dim_value
    for dim, size in zip(shape.dim[1:], (3, height, width)):
        dim.Clear()
        dim.dim_value = size
    if fixed:
        sizes = _static_shapes(model)
        shape.dim[0].Clear()
        _free_reshapes(model, depending(model, image), sizes)
        _repeat_constants(model, depending(model, image), sizes, fixed)
    shape.dim[0].dim_param = "batch"
    del graph.value_info[:]  # sizes of the fixed batch, which ONNX Runtime would believe
    graph.output[0].type.tensor_type.ClearField("shape")


def _static_shapes(model: ModelProto) -> dict[str, list[int]]:
    """Name → sizes of every tensor that shape inference knows all of."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = {t.name: list(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        sizes = [d.dim_value for d in value.type.tensor_type.shape.dim]
        if sizes and all(sizes):
            found[value.name] = sizes
    return found


def _free_reshapes(model: ModelProto, moving: set[str], sizes: dict[str, list[int]]) -> None:
    weights = {t.name: t for t in model.graph.initializer}
    for number, node in enumerate(model.graph.node):
        if node.op_type != "Reshape" or node.input[0] not in moving or node.input[1] not in weights:
            continue
        target = numpy_helper.to_array(weights[node.input[1]]).ravel().tolist()
        after = sizes.get(node.output[0])
        if not target or target[0] in (0, -1) or after is None:
            continue
        name = f"free.{number}"
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1, *after[1:]], np.int64), name))
        node.input[1] = name


def _repeat_constants(model: ModelProto, moving: set[str], sizes: dict[str, list[int]], fixed: int) -> None:
    graph, nodes = model.graph, []
    for number, node in enumerate(graph.node):
        guide = next((name for name in node.input if name in moving), None)
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        for place, name in enumerate(node.input):
            size = sizes.get(name, [])
            if node.op_type != "Concat" or axis == 0 or guide is None or name in moving or size[:1] != [fixed]:
                continue
            root = f"repeat.{number}.{place}"
            constants = {"start": [0], "end": [1], "rest": size[1:]}
            for what, values in constants.items():
                graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"{root}.{what}"))
            nodes += [
                helper.make_node("Shape", [guide], [f"{root}.shape"]),
                helper.make_node("Slice", [f"{root}.shape", f"{root}.start", f"{root}.end"], [f"{root}.batch"]),
                helper.make_node("Concat", [f"{root}.batch", f"{root}.rest"], [f"{root}.size"], axis=0),
                helper.make_node("Expand", [name, f"{root}.size"], [f"{root}.repeated"]),
            ]
            node.input[place] = f"{root}.repeated"
        nodes.append(node)
    _set_nodes(model, nodes)


def _folded(model: ModelProto) -> ModelProto:
    """Constants computed and batch norms folded into convolutions, by ONNX Runtime's basic optimisations.

    As it came where ONNX Runtime refuses the graph, or would leave an operator outside the standard.
    """
    onnxruntime = import_onnxruntime("reading another project's ONNX")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as scratch:
        options.optimized_model_filepath = str(Path(scratch) / "folded.onnx")
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            folded = onnx.load(options.optimized_model_filepath)
        except Exception:
            return model
    standard = [o for o in folded.opset_import if o.domain in ("", "ai.onnx")]
    del folded.opset_import[:]
    folded.opset_import.extend(standard)
    return folded if all(node.domain in ("", "ai.onnx") for node in folded.graph.node) else model


def _add_outputs(model: ModelProto, image: str, feature: str, size: tuple[int, int], dimension: int) -> None:
    """Name input and outputs as the portable form does: the feature flat and of norm 1, the mask all ones."""
    graph = model.graph
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == image:
                node.input[place] = portable.INPUT
    constants = {"flat": np.array([-1, dimension]), "axis": np.array([1])}
    graph.initializer.extend(numpy_helper.from_array(v, f"tail.{name}") for name, v in constants.items())
    graph.initializer.append(numpy_helper.from_array(np.float32(TINY_NORM), "tail.tiny"))
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    graph.node.extend(
        [
            helper.make_node("Reshape", [feature, "tail.flat"], [RAW]),
            helper.make_node("ReduceL2", [RAW, "tail.axis"], ["tail.norm"], keepdims=1),
            helper.make_node("Max", ["tail.norm", "tail.tiny"], ["tail.floor"]),
            helper.make_node("Div", [RAW, "tail.floor"], ["feature"]),
            helper.make_node("Shape", [RAW], ["tail.shape"]),
            helper.make_node("ConstantOfShape", ["tail.shape"], ["mask"], value=one),
        ]
    )
    del graph.input[:], graph.output[:], graph.value_info[:]
    graph.name = "foreign"
    graph.input.append(helper.make_tensor_value_info(portable.INPUT, TensorProto.FLOAT, ["batch", 3, *size]))
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", dimension]) for name in portable.OUTPUTS
    )


def _name_nodes(model: ModelProto) -> None:
    """Give every node a name of its own: quantising and lowering pick nodes by name."""
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}.{number}"
        node.doc_string = ""
