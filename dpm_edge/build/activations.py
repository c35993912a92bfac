"""How large a graph's activations get on real crops: what calibration reads. One crop is in memory at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from dpm_edge.build.portable import INPUT
from dpm_edge.errors import SpecError
from dpm_edge.telemetry import import_onnxruntime


def ranges(model: ModelProto, names: Collection[str], crops: Iterable[NDArray[np.float32]]) -> dict[str, float]:
    """The largest |x| of each named tensor over all crops (n, 3, H, W).

    Raises:
        SpecError: there are no crops.
        MissingLibrary: onnxruntime is not installed.
    """
    found = dict.fromkeys(names, 0.0)
    seen = False
    for largest, _ in _statistics(model, sorted(names), crops):
        seen = True
        found = {name: max(found[name], largest[name]) for name in found}
    if not seen:
        raise SpecError("there are no crops to calibrate on; some hundred real crops of people are wanted")
    return found


def outlier_ratio(model: ModelProto, names: Collection[str], crops: NDArray[np.float32]) -> dict[str, float]:
    """The largest |x| of each named tensor over its root mean square, on crops (n, 3, H, W)."""
    ((largest, square),) = _statistics(model, sorted(names), [crops])
    return {name: largest[name] / max(np.sqrt(square[name]), 1e-12) for name in names}


def _statistics(
    model: ModelProto, names: list[str], crops: Iterable[NDArray[np.float32]]
) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """For each call of the graph the largest |x| and the mean of x², by name. The graph itself reduces them."""
    onnxruntime = import_onnxruntime("calibration")
    watched = ModelProto()
    watched.CopyFrom(model)
    graph, outputs = watched.graph, []
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), "calibration.flat"))
    for name in names:
        flat, absolute, top, square = (f"{name}.calibration.{what}" for what in ("flat", "abs", "max", "square"))
        squared = f"{square}d"
        graph.node.extend(
            [
                onnx.helper.make_node("Reshape", [name, "calibration.flat"], [flat]),
                onnx.helper.make_node("Abs", [flat], [absolute]),
                onnx.helper.make_node("ReduceMax", [absolute], [top], keepdims=0),
                onnx.helper.make_node("Mul", [flat, flat], [squared]),
                onnx.helper.make_node("ReduceMean", [squared], [square], keepdims=0),
            ]
        )
        outputs += [top, square]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    for crop in crops:
        values = [float(v) for v in session.run(outputs, {INPUT: crop})]
        yield dict(zip(names, values[::2])), dict(zip(names, values[1::2]))
