"""Stage 1 of CLIP's two-stage supervision: a text for each training identity, learned with both encoders frozen.

    dpm-edge train texts RECIPE --data DIR --out texts.safetensors model.clip=FILE [field=value …]

    "A photo of a [X]1 [X]2 [X]3 [X]4 person."     four learned tokens an identity
    C identities · n pictures · B of a batch · J joint width.   Source: CLIP-ReID, AAAI 2023 (arXiv 2211.13977).

The text features are written once and read by stage 2 (loss.texts=FILE); the text tower is never needed again.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from dpm_edge.errors import DataError, DpmError, MissingLibrary, SpecError
from dpm_edge.files import write_whole
from dpm_edge.model.network import DPM
from dpm_edge.model.torchvision_users import import_user
from dpm_edge.train.data import Pictures, to_input
from dpm_edge.train.status import counted

TEMPLATE = "A photo of a X X X X person."
FIRST_LEARNED, LEARNED = 5, 4
"""Where the learned tokens stand in TEMPLATE, after the start token, and how many they are."""
ARCHITECTURE = "ViT-B-16-quickgelu"
"""open_clip's name of OpenAI's CLIP ViT-B/16."""


def open_clip() -> ModuleType:
    """The library, imported. Raises MissingLibrary."""
    try:
        return import_user("open_clip")
    except ImportError as error:
        raise MissingLibrary("open_clip", "learning texts", "pip install 'dpm-edge[train]'") from error


class Prompts(nn.Module):
    """One prompt an identity, through a frozen CLIP text tower."""

    def __init__(self, clip: Any, tokens: Tensor, identities: int) -> None:
        """clip: an open_clip CLIP. tokens: (1, L) int64, TEMPLATE tokenised."""
        super().__init__()
        self.clip = clip.requires_grad_(False).eval()
        self.tokens = tokens
        width = clip.token_embedding.weight.shape[1]
        self.learned = nn.Parameter(0.02 * torch.randn(identities, LEARNED, width))

    def forward(self, people: Tensor) -> Tensor:
        """Text features (B, J) of people (B,) int64, not normalised; gradients reach the learned tokens alone."""
        learned = self.learned[people]

        def put_in(_module: nn.Module, _inputs: Any, embedded: Tensor) -> Tensor:
            after = FIRST_LEARNED + LEARNED
            return torch.cat([embedded[:, :FIRST_LEARNED], learned.to(embedded.dtype), embedded[:, after:]], dim=1)

        handle = self.clip.token_embedding.register_forward_hook(put_in)
        try:
            return self.clip.encode_text(self.tokens.to(people.device).expand(len(people), -1))
        finally:
            handle.remove()


def contrast(anchors: Tensor, others: Tensor, labels: Tensor) -> Tensor:
    """Supervised contrastive loss: −mean over an anchor's positives of log softmax(anchors · othersᵀ). (B, J) each."""
    log_p = F.log_softmax(anchors.float() @ others.float().T, dim=1)
    positive = (labels.unsqueeze(0) == labels.unsqueeze(1)).float()
    return -((log_p * positive).sum(1) / positive.sum(1)).mean()


def learn_prompts(
    prompts: Prompts,
    features: Tensor,
    labels: Tensor,
    *,
    epochs: int = 120,
    batch: int = 64,
    lr: float = 3.5e-4,
    seed: int,
) -> Tensor:
    """Train on image features (n, J) computed once; returns T (C, J), on the features' device.

    Adam, cosine rate with 5 warm-up epochs, image → text and text → image.
    """
    stepper = torch.optim.Adam([prompts.learned], lr=lr)
    draw = torch.Generator().manual_seed(seed)
    for epoch in counted(range(epochs), what="texts"):
        warm = min(5, max(1, epochs // 4))
        cosine = 0.5 * (1 + math.cos(math.pi * (epoch - warm) / max(1, epochs - warm)))
        stepper.param_groups[0]["lr"] = lr * ((epoch + 1) / warm if epoch < warm else cosine)
        for rows in torch.randperm(len(labels), generator=draw).split(batch):
            rows = rows.to(features.device)
            texts = prompts(labels[rows])
            loss = contrast(features[rows], texts, labels[rows]) + contrast(texts, features[rows], labels[rows])
            stepper.zero_grad(set_to_none=True)
            loss.backward()
            stepper.step()
    with torch.no_grad():
        people = torch.arange(len(prompts.learned), device=features.device)
        return torch.cat([prompts(part) for part in people.split(batch)]).float()


@torch.inference_mode()
def joint_features(net: DPM, pictures: Pictures, batch: int = 128) -> Tensor:
    """f_p of every picture, (n, J) float32, on the network's device. Raises SpecError without a projection."""
    device = next(net.parameters()).device
    if net.backbone.proj is None:
        raise SpecError(
            f"expected a model with CLIP's joint space, got {net.spec.name} with joint_dim 0. Texts need the projection"
        )
    net.eval()
    parts = pictures.pixels.split(batch)
    found = [net.backbone(to_input(p.to(device), net.spec.preprocessing)).joint.float() for p in parts]
    return torch.cat(found).clone()


def save_texts(path: Path, texts: Tensor, people: Tensor) -> None:
    """Write T (C, J) float32 and the C person ids that its rows are of."""
    write_whole(path, to_safetensors({"texts": texts.cpu().contiguous(), "people": people.cpu().contiguous()}))


def load_texts(path: Path, people: Tensor) -> Tensor:
    """T (C, J). Raises DataError where the file is missing or of other people than `people` (C,) int64."""
    if not path.is_file():
        raise DataError(f"expected a file of texts, got no {path}. `dpm-edge train texts` writes it")
    with safe_open(str(path), "pt") as file:
        texts, theirs = file.get_tensor("texts"), file.get_tensor("people")
    if not torch.equal(theirs, people):
        raise DataError(
            f"expected texts of this set's {len(people)} people, got texts of {len(theirs)} people in {path}. "
            "Learn them again on this data set"
        )
    return texts


def main(arguments: list[str] | None = None) -> int:
    """Learn the texts of a recipe's training people. Returns the exit code."""
    from dpm_edge.train.arguments import config_of, tool_parser
    from dpm_edge.train.data import decode
    from dpm_edge.train.run import device_of, training_set
    from dpm_edge.train.start import NEEDED, network

    made = tool_parser("texts", __doc__)
    made.add_argument("--epochs", type=int, default=120)
    options = made.parse_intermixed_args(arguments)
    try:
        config = config_of(options)
        device = device_of(config)
        net = network(config.model, 0, 0, config.seed).to(device)
        if config.model.clip in ("", NEEDED):
            raise SpecError(
                "expected CLIP's weights, whose text tower the texts are learned through, got none. Give "
                "model.clip=FILE"
            )
        library = open_clip()
        clip = library.create_model(ARCHITECTURE, pretrained=config.model.clip).to(device)
        pictures = decode(training_set(config, options.data).train, net.spec.preprocessing)
        people, labels = torch.unique(pictures.people, return_inverse=True)
        torch.manual_seed(config.seed)
        prompts = Prompts(clip, library.get_tokenizer(ARCHITECTURE)([TEMPLATE]), len(people)).to(device)
        features = joint_features(net, pictures)
        texts = learn_prompts(prompts, features, labels.to(device), epochs=options.epochs, seed=config.seed)
        save_texts(options.out, texts, people)
    except DpmError as error:
        print(f"dpm-edge train texts: {error}", file=sys.stderr)
        return 1
    print(f"{len(people)} texts of {texts.shape[1]} numbers in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
