"""Another project's network behind the face of ours: a feature, a mask of ones, no visibility.

It can be built, adapted and evaluated. What computes the feature is the module `body`; `NETWORKS` makes it again from
what the checkpoint's JSON says.

Shapes: B images · H×W pixels · D feature dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dpm_edge.errors import CheckpointError, MissingLibrary, nearest
from dpm_edge.model.network import DPM, DPMOutput
from dpm_edge.spec import NECKS, ModelSpec

NETWORKS = {
    "osnet": "osnet:OSNet",
    "resnet50": "resnet50:ResNet50",
    "transreid": "transreid:TransReID",
    "swin": "swin:Swin",
    "onnx": "onnx_graph:OnnxGraph",
}
"""Kind of network → file in dpm_edge.model.imported and its class there."""


class ForeignNetwork(nn.Module):
    """The network that `network` names, which gives features of the spec's dimension.

    network: {"kind": one of NETWORKS, and the arguments of its class}; JSON types alone.

    Raises:
        CheckpointError: `network` names no known network, or arguments that it does not take.
        MissingLibrary: a library that defines the network is not installed.
    """

    prototypes: None = None

    def __init__(self, spec: ModelSpec, network: Any) -> None:
        super().__init__()
        self.spec = spec
        self.network: dict[str, Any] = network
        self.body = _make(network, spec)

    def train(self, mode: bool = True) -> ForeignNetwork:
        """Switch between training and evaluation; batch norms always keep their statistics.

        A batch of a few people of one site is no measure of them.
        """
        super().train(mode)
        for module in self.body.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocessed images (B, 3, H, W) → feature (B, D), L2-normalised, and a mask of ones (B, D), float32."""
        feature = F.normalize(self.body(images).float(), dim=1)
        return feature, torch.ones_like(feature)

    def features(self, images: Tensor, necks: Sequence[str] = NECKS) -> tuple[dict[str, Tensor], Tensor]:
        """Compute `forward`'s feature under the name of each side of the BN neck (they are one here), and the mask."""
        feature, mask = self(images)
        return dict.fromkeys(necks, feature), mask

    def forward_train(
        self, images: Tensor, cameras: Tensor | None = None, patch_scale: Tensor | None = None
    ) -> DPMOutput:
        """What training reads: the feature before normalising, as `f` and as `neck`, and a mask of ones."""
        feature = self.body(images)
        none = feature.new_zeros(len(feature), 0, 0)
        neck = feature.float()
        return DPMOutput(feature, neck, torch.ones_like(neck), None, none, [], None, None)


AnyNetwork = DPM | ForeignNetwork


def _make(network: Any, spec: ModelSpec) -> nn.Module:
    kind = network.get("kind") if isinstance(network, dict) else None
    if kind not in NETWORKS:
        raise CheckpointError(
            f"expected a known network in the checkpoint's JSON, got {kind!r}.{nearest(str(kind), NETWORKS)}"
        )
    file, _, name = NETWORKS[kind].partition(":")
    arguments = {key: value for key, value in network.items() if key != "kind"}
    try:
        made: Callable[..., nn.Module] = getattr(import_module(f"dpm_edge.model.imported.{file}"), name)
        return made(dimension=spec.dimension, preprocessing=spec.preprocessing, **arguments)
    except ImportError as error:
        library = error.name or file
        raise MissingLibrary(library, f"networks of kind {kind}", f"pip install {library}") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"expected arguments of {kind} in the checkpoint's JSON, got {str(arguments)[:200]} ({error}). "
            "Import it again"
        ) from error
