"""State dictionaries with other projects' names and shapes, random values, and what those networks compute.

Every reference is another library's network (torchvision, timm, open_clip) or spelt out here; none is ours.
A width of 64 and twelve blocks stand for the ViT-B's 768; the names are the same.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpm_edge.model.torchvision_users import import_user

WIDTH, BLOCKS, CAMERAS, CLASSES = 64, 12, 6, 5


def randomise(net: nn.Module) -> nn.Module:
    """Move every tensor away from its first value, so that nothing hides behind a zero or a one."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=draw)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=draw), alpha=0.1 if tensor.dim() < 2 else 0.01)
    return net.eval()


def imagenet_vit(stride: int = 16, height: int = 256) -> nn.Module:
    """timm's ViT with another patch stride: TransReID's and DPM's `base`, camera embedding aside."""
    timm = import_user("timm")
    net = timm.models.vision_transformer.VisionTransformer(
        img_size=(height, 128), patch_size=16, embed_dim=WIDTH, depth=BLOCKS, num_heads=1, num_classes=CLASSES
    )
    rows, columns = (height - 16) // stride + 1, (128 - 16) // stride + 1
    net.patch_embed.proj.stride = (stride, stride)
    net.pos_embed = nn.Parameter(torch.randn(1, 1 + rows * columns, WIDTH))
    return randomise(net)


def transreid_state(net: nn.Module, cameras: Tensor | None = None) -> dict[str, Tensor]:
    """TransReID's state dictionary without its jigsaw patch module."""
    state = {f"base.{name.replace('head.', 'fc.')}": value for name, value in net.state_dict().items()}
    if cameras is not None:
        state["base.sie_embed"] = cameras
    neck = randomise(nn.BatchNorm1d(WIDTH))
    state |= {f"bottleneck.{name}": value for name, value in neck.state_dict().items()}
    return state | {"classifier.weight": torch.randn(CLASSES, WIDTH)}


def mask_head() -> tuple[nn.Sequential, nn.Linear]:
    """DPM's ConvLayer and attfc."""
    widths = ((4 * WIDTH, 2 * WIDTH), (2 * WIDTH, WIDTH), (WIDTH, WIDTH))
    blocks = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in widths]
    head = nn.Sequential(blocks[0], nn.MaxPool2d(2), blocks[1], nn.MaxPool2d(2), blocks[2], nn.AdaptiveMaxPool2d(1))
    linear = nn.Linear(WIDTH, WIDTH)
    nn.init.normal_(linear.weight, std=0.3)
    randomise(linear)
    return randomise(head), linear  # type: ignore[return-value]


def jigsaw(net: nn.Module) -> dict[str, nn.Module]:
    """TransReID's b1 and b2: a block and its norm each."""
    made = {}
    for number, name in enumerate(("b1", "b2"), start=1):
        other = imagenet_vit()
        torch.manual_seed(number)
        made[name] = nn.Sequential(other.blocks[-1], other.norm)
        for parameter in made[name].parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return made


def jigsaw_feature(net: nn.Module, parts: dict[str, nn.Module], images: Tensor) -> Tensor:
    """The feature that TransReID tests with: the whole picture's and a quarter of each part's, spelt out by index."""
    x = net.patch_embed(images)
    x = torch.cat([net.cls_token.expand(len(x), -1, -1), x], dim=1) + net.pos_embed
    for block in net.blocks[:-1]:
        x = block(x)
    count = x.shape[1] - 1
    order = [1 + (4 + place) % count for place in range(count)]
    order = [order[hand * (count // 2) + place] for place in range(count // 2) for hand in range(2)]
    found = [parts["b1"](x)[:, 0]]
    for part in range(4):
        chosen = [0, *order[part * (count // 4) : (part + 1) * (count // 4)]]
        found.append(parts["b2"](x[:, chosen])[:, 0] / 4)
    return torch.cat(found, dim=1)


def clip_reid() -> tuple[dict[str, Tensor], nn.Module]:
    """CLIP-ReID's state dictionary, with cameras, and open_clip's image tower of the same weights and their mean."""
    import_user("open_clip")
    from open_clip.transformer import QuickGELU, VisionTransformer

    net = VisionTransformer(
        image_size=(256, 128), patch_size=16, width=WIDTH, layers=BLOCKS, heads=1, mlp_ratio=4, output_dim=32,
        act_layer=QuickGELU, output_tokens=True,
    )  # fmt: skip
    randomise(net)
    state = {f"image_encoder.{name}": value.clone() for name, value in net.state_dict().items()}
    cameras = torch.randn(CAMERAS, WIDTH)
    state["cv_embed"] = cameras
    for name, width in (("", WIDTH), ("_proj", 32)):
        neck = randomise(nn.BatchNorm1d(width))
        state |= {f"bottleneck{name}.{key}": value for key, value in neck.state_dict().items()}
        state[f"classifier{name}.weight"] = torch.randn(CLASSES, width)
    state |= {"prompt_learner.cls_ctx": torch.randn(2, 4, 8), "text_encoder.positional_embedding": torch.randn(7, 8)}
    net.class_embedding.data += cameras.mean(0)
    return state, net


class HalfNorm(nn.Module):
    """IBN-a as fast-reid names it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.IN = nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = nn.BatchNorm2d(channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat([self.IN(first), self.BN(second)], 1)


class NonLocalByPairs(nn.Module):
    """A non-local block that writes the matrix of all pairs of places down."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g, self.theta, self.phi = (nn.Conv2d(channels, 1, 1) for _ in range(3))
        self.W = nn.Sequential(nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        places = x.shape[2] * x.shape[3]
        pairs = self.theta(x).flatten(2).transpose(1, 2) @ self.phi(x).flatten(2) / places
        mixed = (pairs @ self.g(x).flatten(2).transpose(1, 2)).transpose(1, 2).view(len(x), 1, *x.shape[2:])
        return x + self.W(mixed)


def fast_reid(*, ibn: bool, sbs: bool) -> tuple[dict[str, Tensor], nn.Module]:
    """fast-reid's state dictionary, and torchvision's ResNet-50 changed as fast-reid changes it."""
    torchvision = import_user("torchvision")
    net = torchvision.models.resnet50(weights=None)
    del net.fc
    net.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
    net.layer4[0].conv2.stride = net.layer4[0].downsample[0].stride = (1, 1)
    for stage in (net.layer1, net.layer2, net.layer3) if ibn else ():
        for block in stage:
            block.bn1 = HalfNorm(block.bn1.num_features)
    for number, (count, channels) in enumerate(((0, 256), (2, 512), (3, 1024), (0, 2048)), start=1) if sbs else ():
        net.add_module(f"NL_{number}", nn.ModuleList(NonLocalByPairs(channels) for _ in range(count)))
    randomise(net)
    for name, parameter in net.named_parameters():
        if name.startswith("NL_"):  # cubic in its input: large weights would leave float32
            parameter.data *= 0.1
    neck = randomise(nn.BatchNorm1d(2048))
    power = torch.tensor([2.5])
    state = {f"backbone.{name}": value for name, value in net.state_dict().items()}
    state |= {f"heads.bottleneck.0.{name}": value for name, value in neck.state_dict().items()}
    state["heads.weight"] = torch.randn(CLASSES, 2048)
    if sbs:
        state["heads.pool_layer.p"] = power

    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = net.maxpool(F.relu(net.bn1(net.conv1(x))))
            for number in (1, 2, 3, 4):
                blocks, behind = getattr(net, f"layer{number}"), getattr(net, f"NL_{number}", ())
                for place, block in enumerate(blocks):
                    x = block(x)
                    if place >= len(blocks) - len(behind):
                        x = behind[place - len(blocks) + len(behind)](x)
            if sbs:
                return neck(x.clamp(min=1e-6).pow(power).mean((2, 3)).pow(1 / power))
            return neck(x.mean((2, 3)))

    return state, Whole()


def solider(side: int = 256) -> tuple[dict[str, Tensor], nn.Module]:
    """SOLIDER's state dictionary of a narrow Swin, and torchvision's Swin with what the semantic weight 0.2 does.

    A square input: torchvision does not shift where one window covers the whole map.
    """
    torchvision = import_user("torchvision")
    net = torchvision.models.swin_transformer.SwinTransformer(
        patch_size=[4, 4], embed_dim=32, depths=[2] * 4, num_heads=[1, 2, 4, 8], window_size=[7, 7],
        stochastic_depth_prob=0.0,
    )  # fmt: skip
    randomise(net)
    for name, parameter in net.named_parameters():
        if name.endswith("bias_table"):
            nn.init.normal_(parameter)
    state, semantic = {}, torch.tensor([0.2, 0.8])
    names = {"attn.": "attn.w_msa.", "mlp.0.": "ffn.layers.0.0.", "mlp.3.": "ffn.layers.1."}
    for name, value in net.state_dict().items():
        part, _, rest = name.removeprefix("features.").partition(".")
        if name.startswith("norm."):
            state[f"base.norm3.{rest}"] = value
        elif part == "0":
            state["base.patch_embed." + rest.replace("0.", "projection.").replace("2.", "norm.")] = value
        elif part.isdigit() and int(part) % 2:
            for old, new in names.items():
                rest = rest.replace(old, new)
            state[f"base.stages.{(int(part) - 1) // 2}.blocks.{rest}"] = value
        elif part.isdigit():  # theirs: channel, then row, then column; torchvision's: column, then row, then channel
            shape = (*value.shape[:-1], 2, 2, value.shape[-1] // 4)
            value = value.reshape(shape).transpose(-1, -3).flatten(-3)
            state[f"base.stages.{int(part) // 2 - 1}.downsample.{rest}"] = value
    factors, additions = [], []
    for stage in range(4):
        channels = 32 * 2 ** min(stage + 1, 3)
        for kind, kept in (("w", factors), ("b", additions)):
            line = nn.Linear(2, channels)
            state |= {f"base.semantic_embed_{kind}.{stage}.{key}": value for key, value in line.state_dict().items()}
            kept.append(line(semantic).detach())
    state |= {"base.norm0.weight": torch.ones(32), "classifier.weight": torch.zeros(CLASSES, 256)}

    class Whole(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for place, part in enumerate(net.features):
                x = part(x)
                if place in (2, 4, 6):
                    x = x * F.softplus(factors[place // 2 - 1]) + additions[place // 2 - 1]
            return net.norm(x).mean((1, 2))

    return state, Whole()
