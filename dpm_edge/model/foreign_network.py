"""Another project's network behind the face of ours: a feature, a mask of ones, no visibility.

It can be built, adapted and evaluated. What computes the feature is the module `body`; `NETWORKS` makes it again from
what the checkpoint's JSON says. `dpm-edge train mask` adds the module `sight`: then there are masks and a map of what
is seen.

Shapes: B images · H×W pixels · h×w map · D feature dimensions.
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
from dpm_edge.model.foreign_sight import ForeignSight
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

    network: {"kind": one of NETWORKS, and the arguments of its class}; with "sight", the arguments of ForeignSight,
    where the spec has a foreign_grid. JSON types alone.

    Raises:
        CheckpointError: `network` names no known network, or arguments that it does not take, or lacks the sight that
            the spec speaks of, or has one that it does not.
        MissingLibrary: a library that defines the network is not installed.
    """

    prototypes: None = None

    def __init__(self, spec: ModelSpec, network: Any) -> None:
        super().__init__()
        self.spec = spec
        self.network: dict[str, Any] = network
        self.body = _make(network, spec)
        self.sight = _sight(network, spec)
        self.run_body: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
        """Where the body is held still: what computes its map and its feature in torch's place, faster."""

    def train(self, mode: bool = True) -> ForeignNetwork:
        """Switch between training and evaluation; batch norms always keep their statistics.

        A batch of a few people of one site is no measure of them.
        """
        super().train(mode)
        for module in self.body.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Preprocessed images (B, 3, H, W) → feature (B, D), L2-normalised, and mask (B, D), float32.

        With a sight also the map of what is seen (B, 2, h, w), as `DPM.forward` gives it; without one the mask is ones.
        """
        out = self.forward_train(images)
        feature = F.normalize(out.neck, dim=1)
        return (feature, out.mask) if out.visibility is None else (feature, out.mask, torch.sigmoid(out.visibility))

    def features(self, images: Tensor, necks: Sequence[str] = NECKS) -> tuple[dict[str, Tensor], Tensor]:
        """Compute `forward`'s feature under the name of each side of the BN neck (they are one here), and the mask."""
        feature, mask = self(images)[:2]
        return dict.fromkeys(necks, feature), mask

    def forward_train(
        self, images: Tensor, cameras: Tensor | None = None, patch_scale: Tensor | None = None
    ) -> DPMOutput:
        """What training reads: the feature before normalising, as `f` and as `neck`, mask and map; mask of ones without
        a sight."""
        raw, logits, read = self.look(images)
        none = raw.new_zeros(raw.shape[0], 0, 0)  # of a length, export would fix the batch
        if logits is None or self.sight is None:
            return DPMOutput(raw, raw, torch.ones_like(raw), None, none, [], None, None)
        mask = self.sight.mask(read, logits, raw)
        return DPMOutput(raw, raw, mask, None, none, [], None, logits.float())

    def look(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The feature before normalising (B, D) float32, the logits of the map (None without a sight), and what the
        sight read of the preprocessed images (B, 3, H, W): the body's map, or themselves."""
        if self.sight is None:
            return (self.body(images) if self.run_body is None else self.run_body(images)[1]).float(), None, images
        if not self.sight.pools:
            grid, raw = self.from_body(images)
            read = images if self.sight.picture else grid
            return raw, self.sight(read)[0], read
        if self.run_body is not None:
            grid, rest = self.run_body(images)[0], self.fixed_values()
        else:
            grid, rest = self.body.to_map(images)  # type: ignore[operator]
        logits, on = self.sight(grid)
        return self.body.from_map(on, rest).float(), logits, grid  # type: ignore[operator]

    def fixed_values(self) -> Any:
        """What the body's `from_map` needs beside the map, where no picture changes it."""
        return self.body.fixed_values() if hasattr(self.body, "fixed_values") else None  # type: ignore[operator]

    def from_body(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Preprocessed images (B, 3, H, W) → the body's last feature map (B, c, h, w), and its feature before
        normalising (B, D) float32, which no sight changes."""
        if self.run_body is not None:
            return self.run_body(images)
        grid, rest = self.body.to_map(images)  # type: ignore[operator]
        return grid, self.body.from_map(grid, rest).float()  # type: ignore[operator]


AnyNetwork = DPM | ForeignNetwork


def _make(network: Any, spec: ModelSpec) -> nn.Module:
    kind = network.get("kind") if isinstance(network, dict) else None
    if kind not in NETWORKS:
        raise CheckpointError(
            f"expected a known network in the checkpoint's JSON, got {kind!r}.{nearest(str(kind), NETWORKS)}"
        )
    file, _, name = NETWORKS[kind].partition(":")
    arguments = {key: value for key, value in network.items() if key not in ("kind", "sight")}
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


def _sight(network: dict[str, Any], spec: ModelSpec) -> ForeignSight | None:
    arguments = network.get("sight")
    if (arguments is None) != (spec.foreign_grid is None):
        raise CheckpointError(
            f"expected a sight in the checkpoint's JSON where its model has a foreign_grid, got {arguments!r} and "
            f"{spec.foreign_grid}. Copy the JSON again"
        )
    if arguments is None:
        return None
    try:
        return ForeignSight(dimension=spec.dimension, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"expected arguments of a sight in the checkpoint's JSON, got {str(arguments)[:200]} ({error}). Teach it "
            "again: dpm-edge train mask"
        ) from error
