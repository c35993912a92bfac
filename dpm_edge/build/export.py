"""From a network in torch to a portable ONNX.

    python -m dpm_edge.build.export CHECKPOINT OUT.onnx [--half]

B images · H×W pixels · D feature dimensions
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from onnx import ModelProto
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dpm_edge.build import portable, sight_graph, trainable
from dpm_edge.model import checkpoint
from dpm_edge.model.foreign_network import AnyNetwork, ForeignNetwork

OPSET = 18
"""Old enough for TensorRT 10.3's parser, new enough for LayerNormalization."""


def to_onnx(net: AnyNetwork) -> ModelProto:
    """The network's `forward` as a float32 ONNX graph: dynamic batch, BN folded into its convolutions, standard
    operators, no traces of the machine that exported it.

    Raises:
        CheckpointError: the exporter left an operator that is not standard.
    """
    net = copy.deepcopy(net).float().cpu().eval()
    if isinstance(net, ForeignNetwork):
        net.run_body = None
    if isinstance(net, ForeignNetwork) and net.network["kind"] == trainable.KIND:
        model = trainable.to_onnx(net)
        if net.sight is not None:
            sight_graph.add_sight(model, net, _exported)
        return model
    if isinstance(net, ForeignNetwork):
        _fold_batch_norm(net.body)
    else:
        _fold_batch_norm(net.mask_generator)
        _fold_batch_norm(net.backbone.conv1)
        net.add_module("neck", _Scale(net.neck))
    pre = net.spec.preprocessing
    names = [*portable.OUTPUTS, *([portable.MAP] if net.spec.visibility == "map" else [])]
    model = _exported(net, (torch.zeros(2, 3, pre.height, pre.width),), [portable.INPUT], names)
    portable.check_standard(model)
    return model


def _exported(
    module: nn.Module, examples: tuple[torch.Tensor, ...], inputs: list[str], outputs: list[str]
) -> ModelProto:
    """The graph of a module whose inputs are of any batch, without traces of this machine."""
    batch = torch.export.Dim("batch", min=1, max=4096)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=tuple({0: batch} for _ in examples),
            verbose=False,
        )
    assert program is not None, "the dynamo exporter returns a program"
    model = program.model_proto
    _strip(model)
    return model


def export(net: AnyNetwork, path: str | Path, *, half: bool = False) -> None:
    """Write `net` as a portable ONNX; `half` stores large weights as float16.

    Raises:
        CheckpointError: an operator is not standard, or a weight is beyond float16.
    """
    portable.write(to_onnx(net), Path(path), net.spec, checkpoint.fingerprint(net), half=half)


class _Scale(nn.Module):
    """A BatchNorm1d in evaluation mode as one multiplication and one addition per dimension."""

    factor: torch.Tensor
    shift: torch.Tensor

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None, "the neck keeps running statistics"
        factor = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        self.register_buffer("factor", factor)
        self.register_buffer("shift", norm.bias.detach() - norm.running_mean * factor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor + self.shift


def _fold_batch_norm(module: nn.Module) -> None:
    """Fold each BatchNorm2d into the convolution registered right before it; in place."""
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (conv_name, conv), (bn_name, bn) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d):
                setattr(parent, conv_name, fuse_conv_bn_eval(conv, bn))
                setattr(parent, bn_name, nn.Identity())


def _strip(model: ModelProto) -> None:
    """Drop what only says where the graph came from: stack traces, file names, intermediate shapes."""
    model.doc_string = model.graph.doc_string = ""
    model.graph.name = "dpm"
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for item in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        item.doc_string = ""
        del item.metadata_props[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own deprecations; nobody who builds an engine can act on them."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description="Write a checkpoint as a portable ONNX.")
    parser.add_argument("checkpoint", help="NAME.safetensors beside NAME.json")
    parser.add_argument("out", type=Path, help="file to write, .onnx")
    parser.add_argument("--half", action="store_true", help="store large weights as float16: half the size")
    arguments = parser.parse_args()
    export(checkpoint.load_any(arguments.checkpoint), arguments.out, half=arguments.half)


if __name__ == "__main__":
    main()
