"""Heads of the visibility map on a network that stays as it is, taught side by side on the same batches.

    python benchmarks/gpu/train_nano.py pack --rendered DIR --validation MARKET --stem lite0.pth --out PACK
    python benchmarks/training/map_heads.py PACK [FIELD=VALUE …] --data VALIDATION --minutes 28 --out OUT.json

Is it the head that takes a stranger in front for the person? Every head reads what the network's stem gives: its tokens
alone, or with them the maps of stages 3, 5 and 7, from which they come. The network is the shipped one, only its map
is another. VALIDATION (Market-1501's layout) is covered by 20, 40 and 60 % with the three held-out kinds; mAP is the
plain metric's, `visibility` the rank correlation with the share of the uncovered query's own map that is left in sight.
OUT.json holds rows after a half and after all of the minutes, beside the shipped head's; OUT.covered.safetensors keeps
the covered queries.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from exact_map import SHARE, GivenMap, exact
from ladder import SHARES
from torch import Tensor, nn

from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.layouts import read_dataset
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.model.visibility import SEEN, VisibilityHead, share_in_sight
from dpm_edge.progress import say
from dpm_edge.telemetry import import_openvino
from dpm_edge.train.config import override
from dpm_edge.train.data import Pictures, decode, to_input
from dpm_edge.train.evaluate import curves, occlusion_sets, rank_correlation
from dpm_edge.train.loop import covered_batch
from dpm_edge.train.recipes import recipe
from dpm_edge.train.sight import visibility_loss

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gpu"))
import nano_pack
import train_nano

READ_STAGES = (3, 5, 7)
BATCH = 64
SETTINGS = ["augment.background=0.5", "augment.blur=0.5", "covering.probability=0.75", "covering.passers_by=0.5",
            "covering.clutter=true"]  # fmt: skip


class Stem(nn.Module):
    """Images (B, 3, H, W) → (B, c, h, w): the tokens, then the read stages' maps, finer ones folded into channels."""

    def __init__(self, net: DPM) -> None:
        super().__init__()
        self.stem, self.kept = net.backbone.conv1, dict[int, Tensor]()
        for stage in READ_STAGES:
            block = self.stem.blocks[self.stem.ends[stage - 1] - 1]
            block.register_forward_hook(lambda _module, _given, made, stage=stage: self.kept.update({stage: made}))

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images)
        size = tokens.shape[2:]
        parts = [tokens]
        for stage in READ_STAGES:
            found = self.kept[stage]
            fold = found.shape[2] // size[0]
            parts.append(F.pixel_unshuffle(found, fold) if fold > 1 else F.interpolate(found, size=size))
        return torch.cat(parts, 1)


class Context(nn.Module):
    """3×3 convolutions that know the place, and the mean and the maximum of the picture; (B, c, h, w) → logits."""

    def __init__(self, channels: int, grid: tuple[int, int], width: int = 96) -> None:
        super().__init__()
        self.channels = channels
        self.reduce = nn.Conv2d(channels, width, 1)
        self.place = nn.Parameter(torch.zeros(1, width, *grid))
        self.around = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.whole = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(3))
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.reduce(x[:, : self.channels]) + self.place)
        for around, whole in zip(self.around, self.whole):
            everywhere = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
            x = x + torch.relu(around(x) + whole(everywhere)[:, :, None, None])
        return self.out(x)


class Attention(nn.Module):
    """Two transformer blocks over the places; (B, c, h, w) → logits (B, 2, h, w)."""

    def __init__(self, channels: int, grid: tuple[int, int], width: int = 96) -> None:
        super().__init__()
        self.channels = channels
        self.reduce = nn.Linear(channels, width)
        self.place = nn.Parameter(0.02 * torch.randn(1, grid[0] * grid[1], width))
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.reduce(x[:, : self.channels].flatten(2).transpose(1, 2)) + self.place
        return self.out(self.norm(self.blocks(tokens))).transpose(1, 2).unflatten(2, x.shape[2:])


class Shipped(nn.Module):
    """The kind of head that ships: tokens alone, 3×3 around."""

    def __init__(self, head: VisibilityHead, channels: int) -> None:
        super().__init__()
        self.head, self.channels = head, channels

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x[:, : self.channels])


class Validation:
    """Queries, whole and covered, and the gallery, through the stem once."""

    def __init__(self, net: DPM, stem: Any, data: Path, covered: Path) -> None:
        people, pre = read_dataset(data, "market", train=False), net.spec.preprocessing
        self.net, self.width = net, net.spec.width
        self.query, self.gallery = (decode(p, pre, workers=1, quiet=True) for p in (people.query, people.gallery))
        self.sets = {("whole", 0.0): self.query, **occlusion_sets(self.query, self.query, SHARES, covered, workers=1)}

        def read(pictures: Pictures) -> Tensor:
            return torch.cat([stem(to_input(part, pre)) for part in pictures.pixels.split(BATCH)])

        self.maps = {key: read(one) for key, one in self.sets.items()}
        self.rows = read(self.gallery)
        head = Shipped(net.backbone.visibility, self.width)  # type: ignore[arg-type]
        with torch.inference_mode():
            clean = torch.sigmoid(head(self.maps["whole", 0.0]))
        self.true = {key: exact(clean, self.query.pixels, one.pixels) for key, one in self.sets.items()}

    @torch.inference_mode()
    def _seen_by(self, head: nn.Module, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        backbone, given, found = self.net.backbone, GivenMap(), []
        stem, own = backbone.conv1, backbone.visibility
        backbone.conv1, backbone.visibility = nn.Identity(), given  # type: ignore[assignment]
        for part in maps.split(BATCH):
            given.logits = head(part)
            found.append(self.net(part[:, : self.width]))
        backbone.conv1, backbone.visibility = stem, own
        features, masks, seen = (torch.cat(parts) for parts in zip(*found))
        return features, masks, seen

    def judge(self, head: nn.Module) -> dict[str, Any]:
        """mAP of the plain metric, whole, covered and per kind, and the rank correlation of the visibility."""
        target = self._seen_by(head, self.rows)
        asked = {key: self._seen_by(head, maps) for key, maps in self.maps.items()}
        sides = {key: one[:2] for key, one in asked.items()}
        rows = [r for r in curves(self.query, self.gallery, sides, target[:2]) if r["metric"] == "plain"]
        said, left = (
            torch.cat([share_in_sight(maps[:, SEEN], maps[:, 1 - SEEN]) for maps in side]).numpy()
            for side in ([one[2] for one in asked.values()], list(self.true.values()))
        )
        by = {kind: [r["mAP"] for r in rows if r["kind"] == kind] for kind in dict.fromkeys(r["kind"] for r in rows)}
        told = {kind: round(float(np.mean(found)), 2) for kind, found in by.items()}
        told["covered"] = round(float(np.mean([r["mAP"] for r in rows if r["share"]])), 2)
        told[f"body, {SHARE:.0%}"] = round(
            next(r["mAP"] for r in rows if (r["kind"], r["share"]) == ("body", SHARE)), 2
        )
        return {**told, "visibility": round(rank_correlation(said, left), 3)}


def by_openvino(module: nn.Module, size: tuple[int, int]) -> Any:
    """The module computed by OpenVINO in float32 on one thread: a function of images (B, 3, H, W)."""
    ov = import_openvino("the stem")
    with torch.no_grad():
        model = ov.convert_model(module, example_input=torch.zeros(2, 3, *size))
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
    return lambda images: torch.from_numpy(request.infer([images.contiguous().numpy()])[0].copy())


def main() -> int:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("pack", type=Path)
    parser.add_argument("--net", default="dpm-n")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("settings", nargs="*", metavar="FIELD=VALUE")
    said = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = checkpoint.load_any(said.net).eval()
    width, grid, pre = net.spec.width, net.spec.grid, net.spec.preprocessing
    stem = by_openvino(Stem(net).eval(), (pre.height, pre.width))
    validation = Validation(net, stem, said.data, said.out.with_suffix(".covered.safetensors"))
    channels = validation.rows.shape[1]
    own: VisibilityHead = net.backbone.visibility  # type: ignore[assignment]
    heads: dict[str, tuple[nn.Module, float]] = {
        "the same, from where it is": (Shipped(copy.deepcopy(own), width), 5e-4),
        "the same, anew": (Shipped(VisibilityHead(width), width), 2e-3),
        "context": (Context(width, grid), 2e-3),
        "attention": (Attention(width, grid), 2e-3),
        "context, all stages": (Context(channels, grid), 2e-3),
        "attention, all stages": (Attention(channels, grid), 2e-3),
    }
    rows = {"ships": validation.judge(Shipped(own, width))}
    say(f"ships: {rows['ships']}")
    scratch = said.out.with_suffix(".unpacked")
    if not (scratch / "pixels.npy").exists():
        nano_pack.unpack(said.pack, scratch)
    config = override(recipe("rendered_nano"), [*train_nano.BASE, *SETTINGS, *said.settings])
    run = train_nano.prepared(config, said.pack, scratch, scratch)
    steppers = {n: torch.optim.AdamW(h.parameters(), lr, weight_decay=0.02) for n, (h, lr) in heads.items()}
    losses: dict[str, list[float]] = {name: [] for name in heads}
    begin, looks, told = time.perf_counter(), [0.5, 1.0], 0.0
    while looks:
        for batch in torch.from_numpy(run.sampler.epoch(run.epoch)):
            part = (time.perf_counter() - begin) / (60 * said.minutes)
            if part >= looks[0]:
                when, stopped = f"{looks.pop(0):.0%}", time.perf_counter()
                for name, (head, _) in heads.items():
                    rows[f"{name}, {when}"] = {**validation.judge(head.eval()), "steps": run.step,
                                               "loss": round(float(np.mean(losses[name][-50:])), 4)}  # fmt: skip
                    head.train()
                    say(f"{name}, {when}: {rows[f'{name}, {when}']}")
                begin += time.perf_counter() - stopped  # looking does not count
            if not looks:
                break
            with torch.no_grad():
                images, targets, _ = covered_batch(run, batch, torch.Generator().manual_seed(run.step))
                maps = stem(images)
            rate = min(1.0, run.step / 50) * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))
            for name, (head, lr) in heads.items():
                steppers[name].param_groups[0]["lr"] = lr * rate
                assert targets.shares is not None
                loss = visibility_loss(head(maps), targets.shares)
                steppers[name].zero_grad()
                loss.backward()
                steppers[name].step()
                losses[name].append(float(loss.detach()))
            run.step += 1
            if time.perf_counter() - told > 8:
                told = time.perf_counter()
                say(f"step {run.step}, {100 * part:.0f} % of {said.minutes:g} minutes")
        run.epoch += 1
    facts = {"net": checkpoint.fingerprint(net), "minutes": said.minutes, "steps": run.step, "settings": said.settings,
             "people": len(run.sampler.rows), "pictures a step": len(batch), "queries": len(validation.query),
             "gallery": len(validation.gallery), "shares": SHARES, "rows": rows, "machine": machine_card()}  # fmt: skip
    write_whole(said.out, (json.dumps(facts, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
