"""What teaches a network to see through covering: losses on exact masks, on covered features, and on a teacher's.

B pictures · h×w patch grid · d feature width · T a teacher's feature width
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from dpm_edge.env import installed
from dpm_edge.errors import SpecError
from dpm_edge.files import write_whole
from dpm_edge.market import LabelledFolder
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.model.stem import ConvStem
from dpm_edge.model.visibility import share_in_sight
from dpm_edge.telemetry import import_openvino
from dpm_edge.train.data import decode
from dpm_edge.train.evaluate import embed


def visibility_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Binary cross-entropy of the map with the exact shares, plus |visibility − its true value|.

    logits, shares (B, 2, h, w) float32: seen and hidden. The second term counts pictures that show or hide at least
    half a patch of the person.
    """
    entropy = F.binary_cross_entropy_with_logits(logits.float(), shares)
    found = torch.sigmoid(logits.float())
    true = share_in_sight(shares[:, 0], shares[:, 1])
    counted = shares.sum((1, 2, 3)) >= 0.5
    error = (share_in_sight(found[:, 0], found[:, 1]) - true).abs()
    return entropy + (error * counted).sum() / counted.sum().clamp(min=1)


def pull(features: Tensor, labels: Tensor, covered: Tensor) -> Tensor:
    """1 − cos of each covered picture's feature (B, d) with the mean of its person's uncovered ones, which stays.

    People without a covered or without an uncovered picture in the batch do not count.
    """
    same = (labels.unsqueeze(0) == labels.unsqueeze(1)) & ~covered.unsqueeze(0)
    unit = F.normalize(features.float(), dim=1)
    with torch.no_grad():
        centre = same.float() @ unit
    counted = covered & same.any(1)
    loss = 1 - F.cosine_similarity(unit, centre, dim=1)
    return (loss * counted).sum() / counted.sum().clamp(min=1)


def distil(features: Tensor, taught: Tensor) -> Tensor:
    """How far the pictures' cosines with each other are from the teacher's: mean squared error over the pairs.

    features (B, d); taught (B, T), L2-normalised. The pairs of one and the same picture are left out.
    """
    unit = F.normalize(features.float(), dim=1)
    apart = (unit @ unit.T - taught @ taught.T).square()
    others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    return apart[others].mean()


TAUGHT = "taught.safetensors"
"""File of a run's folder that keeps the teacher's features, so that a resumed run need not make them again."""


def teach(teacher: str, folder: LabelledFolder, kept: list[str], cache: Path, quiet: bool) -> Tensor:
    """A teacher's features of the training pictures `kept`: (N, T), L2-normalised; from `cache` where it holds them.

    Raises SpecError where no teacher is named, CheckpointError where it cannot be loaded.
    """
    if not teacher:
        raise SpecError(
            "expected loss.teacher=CHECKPOINT with loss.distil and loss.own, got none. Name one, such as dpm-t"
        )
    net = checkpoint.load(Path(teacher))
    told = {"teacher": checkpoint.fingerprint(net), "pictures": hashlib.sha256("\n".join(kept).encode()).hexdigest()}
    if cache.is_file():
        with safe_open(str(cache), "pt") as file:
            if file.metadata() == told:
                return file.get_tensor("features")
    pictures = decode(folder, net.spec.preprocessing, quiet=quiet)
    if pictures.names != kept:
        raise SpecError("expected the teacher to read the same pictures as the network, got others")
    features = embed(net, pictures.pixels, 64)[0].float().clone()
    write_whole(cache, to_safetensors({"features": features}, told))
    return features


def run_frozen_stages(net: DPM, device: torch.device) -> None:
    """On a CPU, let OpenVINO (where it is installed) compute a stem's frozen stages while training: thrice as fast."""
    stem = net.backbone.conv1
    if device.type != "cpu" or not isinstance(stem, ConvStem) or not stem.frozen:
        return
    if not installed("openvino"):
        return
    ov = import_openvino("a stem's frozen stages")

    class Lower(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return lower(images)

    lower = stem.lower
    stem.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    was = stem.training
    stem.eval()
    with torch.no_grad():
        pre = net.spec.preprocessing
        model = ov.convert_model(Lower(), example_input=torch.zeros(2, 3, pre.height, pre.width))
    stem.train(was)
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()

    def by_openvino(images: Tensor) -> Tensor:
        made = torch.from_numpy(request.infer([images.contiguous().numpy()])[0].copy())
        return made.contiguous(memory_format=torch.channels_last)

    stem.run_frozen = by_openvino
