"""An imported network that is held still, computed by OpenVINO while something beside it learns: four times as fast.

B pictures · c channels · h×w map · D feature dimensions
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from dpm_edge.build import adopt, trainable
from dpm_edge.env import installed
from dpm_edge.model.foreign_network import ForeignNetwork
from dpm_edge.model.imported.onnx_graph import OnnxGraph
from dpm_edge.telemetry import import_openvino

MOST_DIFFERENCE = 1e-3
"""Most that a map or a feature of random input may differ from torch's, as a share of its largest number."""


class _Body(nn.Module):
    """Pictures → map and feature."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        grid, rest = self.body.to_map(images)  # type: ignore[operator]
        return grid, self.body.from_map(grid, rest)  # type: ignore[operator]


def run_frozen_body(net: ForeignNetwork) -> None:
    """Let OpenVINO, where it is installed, compute the body on the CPU; where it computes anything else, torch does."""
    if not installed("openvino"):
        return
    import_openvino("a network that is held still")
    pre = net.spec.preprocessing
    example = torch.randn(3, 3, pre.height, pre.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            run = _compiled(net, example)
            grid, raw = _Body(net.body)(example)
            made = run(example)
            if net.sight is not None and net.sight.pools:  # what follows the map is torch's
                made = made[0], net.body.from_map(made[0], net.fixed_values())  # type: ignore[operator]
        except Exception:  # of any kind: an operator that OpenVINO does not have. torch computes as well
            return
    same = [
        got.shape == want.shape and bool((got - want).abs().max() <= MOST_DIFFERENCE * want.abs().max())
        for got, want in zip(made, (grid, raw))
    ]
    if all(same):
        net.run_body = run


def _compiled(net: ForeignNetwork, example: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Pictures (B, 3, H, W) → map, without one the pictures, and feature, by OpenVINO."""
    ov = import_openvino("a network that is held still")
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    graph = net.body if isinstance(net.body, OnnxGraph) else None
    model = ov.convert_model(_Body(net.body), example_input=example) if graph is None else _model(net, graph, ov)
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        made = [torch.from_numpy(one.copy()) for one in request.infer([images.contiguous().numpy()]).values()]
        if graph is None:
            return made[0], made[1]
        return graph.grid_of(made[0]) if graph.map else images, made[-1]

    return run


def _model(net: ForeignNetwork, graph: OnnxGraph, ov: Any) -> Any:
    """An imported ONNX as OpenVINO's model, with its map and its feature before the norm."""
    model = trainable.to_onnx(net)
    del model.graph.output[:]
    for name in [graph.map] * bool(graph.map) + [adopt.RAW]:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return ov.Core().read_model(model.SerializeToString())
