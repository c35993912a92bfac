"""Nodes of our TensorRT plugin in an ONNX graph (kernels/csrc/tensorrt). TensorRT's parser finds a plugin by the node's
type and the attributes plugin_version and plugin_namespace."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import ModelProto, NodeProto

DOMAIN = "dpm_edge"
VERSION = "1"
MASKED_SIMILARITY, MASK_HEAD = "DpmMaskedSimilarity", "DpmMaskHead"


def plugin_node(kind: str, inputs: Sequence[str], output: str, **fields: int) -> NodeProto:
    """A node of plugin `kind`; `fields` are the plugin's own."""
    node = onnx.helper.make_node(
        kind,
        list(inputs),
        [output],
        name=f"{output}.plugin",
        domain=DOMAIN,
        plugin_version=VERSION,
        plugin_namespace=DOMAIN,
    )
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in fields.items())
    return node


def declare(model: ModelProto) -> None:
    """Name the plugin's domain among the graph's operator sets, which ONNX asks for."""
    if DOMAIN not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
