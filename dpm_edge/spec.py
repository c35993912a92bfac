"""What a model is, written down: shape, preprocessing, weights. Standard library only; every room reads it.

A `ModelSpec` rebuilds a network, checks a checkpoint, travels in a portable ONNX's metadata and in an engine's
manifest. It is JSON on disk; unknown or missing fields are errors, never guesses.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from dpm_edge.errors import SpecError, nearest

INTERPOLATIONS = ("bilinear", "area", "bicubic")
NECKS = ("before", "after")
"""Sides of the BN neck."""
STEMS = ("patch", "lite0", "lite0-deep")
ENCODERS = ("clip", "imagenet")
VISIBILITIES = ("mask", "map")
_SINCE_FORMAT_1 = ("stem", "instance_norm", "visibility", "stripes", "masks", "encoder", "foreign_grid")
"""Fields that came later: written only where they differ from their defaults, so that the JSON and the fingerprint of a
model without them stay what they were, and an older dpm-edge refuses, by name, what it cannot run."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a crop becomes the network's input; the same in training, building and serving.

    Resize to (height, width), put the channels in `color` order, divide by 255, subtract mean, divide by std.
    """

    height: int = 256
    """Rows of the network's input, pixels."""
    width: int = 128
    """Columns of the network's input, pixels."""
    color: str = "rgb"
    """Channel order of the network's input: "rgb" or "bgr". Pictures come in as BGR."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Per channel, in the order of `color`, of values in 0..1."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Per channel, in the order of `color`."""
    interpolation: str = "bilinear"
    """OpenCV's resize: "bilinear", "area" or "bicubic"."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(v) for v in self.mean))
        object.__setattr__(self, "std", tuple(float(v) for v in self.std))
        if self.height < 16 or self.width < 16:
            raise SpecError(f"expected an input of at least 16×16 pixels, got {self.height}×{self.width}")
        if self.color not in ("rgb", "bgr"):
            raise SpecError(f"expected color 'rgb' or 'bgr', got {self.color!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise SpecError(f"expected three numbers each, std above 0, got mean {self.mean} and std {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            offer = nearest(self.interpolation, INTERPOLATIONS)
            raise SpecError(f"expected a known interpolation, got {self.interpolation!r}.{offer}")

    def affine(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Give the normalisation as two numbers a channel: input = scale · value + shift = (value/255 − mean)/std.

        This is the only place of the formula: training, serving and the GPU's crop kernel all take these numbers.

        Returns:
            scale and shift, three float64 each, in the channel order of `color`; value is a pixel's, 0..255.
        """
        (m0, m1, m2), (s0, s1, s2) = self.mean, self.std
        return (1 / (255 * s0), 1 / (255 * s1), 1 / (255 * s2)), (-m0 / s0, -m1 / s1, -m2 / s2)


@dataclass(frozen=True, kw_only=True)
class WeightsCard:
    """Where the weights come from and what one may do with them; carried into every engine's manifest."""

    licence: str = "none: randomly initialised"
    """Licence of the weights, SPDX where there is one."""
    data: str = "none"
    """The pictures they were trained on."""
    recipe: str = "none"
    """The recipe, or the file, that they come from."""
    seed: int | None = None
    """Seed of the training run."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The DPM++ network, or another's (`foreign`).

    Symbols after method sections 1, 2 and 9: d = width, N = grid_h · grid_w patch tokens.
    """

    name: str
    """What people call it, such as "dpm-t"."""
    width: int
    """d, the feature dimension of the ViT."""
    heads: int
    """Attention heads; d must divide by it."""
    layers: int = 12
    """Transformer blocks."""
    patch: int = 16
    """Patch side, pixels."""
    stride: int = 16
    """Patch stride, pixels; below `patch` the patches overlap (12: CLIP-ReID, 11: DPM)."""
    mlp_ratio: float = 4.0
    """Hidden size of the MLP over d."""
    quick_gelu: bool = False
    """x·sigmoid(1.702x) in the MLP, as OpenAI's CLIP weights want."""
    hmg: str = "paper"
    """Hierarchical mask generator: "paper" (three 3×3 convolutions) or "lite" (1×1, then depthwise-separable)."""
    mask_blocks: tuple[int, ...] = (2, 4, 10, 12)
    """1-based blocks whose patch tokens the mask generator reads."""
    cameras: int = 0
    """Cameras with a learned embedding added to every token; 0: none, so that an engine needs no camera id."""
    camera_scale: float = 1.0
    """Factor of the camera embedding (3.0 in DPM, 1.0 in CLIP-ReID)."""
    feature: str = "cls"
    """"cls": the post-LayerNorm class token, D = d. "concat": it and its projection, D = d + joint_dim."""
    joint_dim: int = 512
    """Size of CLIP's joint space."""
    neck: str = "after"
    """Side of the BN neck that retrieval uses: "before", as DPM and CLIP-ReID do, or "after", ours: prototypes and
    masks are learned there, and features are centred, so that a mask does not weigh what all people share."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """How a crop becomes the input."""
    weights: WeightsCard = field(default_factory=WeightsCard)
    """Where the weights come from."""
    mask_mean: float = 0.5
    """Mean of the masks over the training gallery; where `visibility` is "mask", a crop's visibility is the mean of
    its mask over this."""
    stem: str = "patch"
    """Where the patch tokens come from: "patch" (one convolution) or "lite0" (EfficientNet-Lite0 up to `stride` 16 or
    8; ours) or "lite0-deep" (its last stages too, at twice that stride; ours)."""
    instance_norm: bool = False
    """With a stem "lite0": half of the channels after its third stage pass an instance norm (ours)."""
    stripes: int = 0
    """With visibility "map": so many horizontal stripes of the grid are pooled apart, over what is seen, and each adds
    to `width` / `stripes` dimensions of the feature; 0: none (ours)."""
    visibility: str = "mask"
    """What visibility is: "mask" (`mask_mean`) or "map", the share of the person in sight, from an output of its own
    that says of each patch how much of it shows the person (ours)."""
    encoder: str = "clip"
    """Whose blocks: "clip" (a LayerNorm before the first block, eps 1e-5) or "imagenet" (none there, eps 1e-6), as the
    ImageNet ViTs of TransReID and of DPM's own code have it."""
    masks: bool = True
    """False: somebody else's network (`foreign_spec`). Its mask is all ones, it has no visibility, and of the fields
    above only name, width, preprocessing and weights say something about it."""
    foreign_grid: tuple[int, int] | None = None
    """Of somebody else's network that was taught masks and a map (`dpm-edge train mask`): rows and columns of its map.
    Its `masks` is true and its `visibility` "map"; of the other fields what is said above."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask_blocks", tuple(int(b) for b in self.mask_blocks))
        if self.foreign:
            self._check_foreign()
            return
        if self.width % self.heads:
            raise SpecError(f"expected a width that divides into {self.heads} heads, got {self.width}")
        if not 1 <= self.stride <= self.patch:
            raise SpecError(f"expected a stride of 1 to {self.patch} (the patch side), got {self.stride}")
        if self.hmg not in ("paper", "lite"):
            raise SpecError(f"expected hmg 'paper' or 'lite', got {self.hmg!r}")
        if self.feature not in ("cls", "concat"):
            raise SpecError(f"expected feature 'cls' or 'concat', got {self.feature!r}")
        if self.neck not in NECKS:
            raise SpecError(f"expected neck 'before' or 'after', got {self.neck!r}")
        if not self.mask_blocks or not all(1 <= b <= self.layers for b in self.mask_blocks):
            raise SpecError(f"expected mask_blocks in 1..{self.layers}, got {self.mask_blocks}")
        if self.encoder not in ENCODERS:
            offer = nearest(self.encoder, ENCODERS)
            raise SpecError(f"expected encoder {' or '.join(ENCODERS)}, got {self.encoder!r}.{offer}")
        if self.stem not in STEMS:
            raise SpecError(f"expected stem {' or '.join(STEMS)}, got {self.stem!r}.{nearest(self.stem, STEMS)}")
        if self.stem != "patch" and (self.stride not in (8, 16) or self.patch != self.stride):
            raise SpecError(
                f"expected patch and stride both 16 or both 8 for stem {self.stem!r}, got {self.patch} and "
                f"{self.stride}."
            )
        least = 32 if self.stem == "lite0-deep" else 16
        if self.stem != "patch" and (self.preprocessing.height % least or self.preprocessing.width % least):
            raise SpecError(
                f"expected an input of multiples of {least} pixels for stem {self.stem!r}, got "
                f"{self.preprocessing.height}×{self.preprocessing.width}."
            )
        if self.instance_norm and self.stem == "patch":
            raise SpecError("expected stem 'lite0' with instance_norm, got stem 'patch'. Set instance_norm to false.")
        if self.visibility not in VISIBILITIES:
            offer = nearest(self.visibility, VISIBILITIES)
            raise SpecError(f"expected visibility {' or '.join(VISIBILITIES)}, got {self.visibility!r}.{offer}")
        if self.stripes and (self.visibility != "map" or self.grid[0] % self.stripes or self.width % self.stripes):
            raise SpecError(
                f"expected visibility 'map' and stripes that divide the grid's {self.grid[0]} rows and the width "
                f"{self.width}, got {self.visibility!r} and {self.stripes}."
            )
        if min(self.grid) < 4:
            raise SpecError(
                f"expected a token grid of at least 4×4 (two 2×2 poolings), got {self.grid}. Enlarge the input"
            )

    def _check_foreign(self) -> None:
        """Refuse what somebody else's network cannot have."""
        if self.foreign_grid is not None:
            object.__setattr__(self, "foreign_grid", tuple(self.foreign_grid))
            numbers = [side for side in self.foreign_grid if isinstance(side, int) and side > 0]
            if len(self.foreign_grid) != 2 or len(numbers) != 2:
                raise SpecError(f"expected a foreign_grid of two sides of 1 or more, got {self.foreign_grid}")
        sees = "map" if self.foreign_grid is not None else "mask"
        if self.visibility != sees or self.masks != (sees == "map") or self.feature != "cls" or self.stripes:
            raise SpecError(
                f"expected visibility {sees!r}, masks {sees == 'map'}, feature 'cls' and no stripes of another's "
                f"network {'with' if sees == 'map' else 'without'} a foreign_grid, got {self.visibility!r}, "
                f"{self.masks}, {self.feature!r} and {self.stripes}"
            )

    @property
    def foreign(self) -> bool:
        """Whether it is somebody else's network, without masks or with those that it was taught."""
        return not self.masks or self.foreign_grid is not None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch tokens, and of the map of what is seen, (h, w)."""
        if self.foreign_grid is not None:
            return self.foreign_grid
        pre = self.preprocessing
        return (pre.height - self.patch) // self.stride + 1, (pre.width - self.patch) // self.stride + 1

    @property
    def dimension(self) -> int:
        """D, the length of a feature and of a mask."""
        return self.width + (self.joint_dim if self.feature == "concat" else 0)

    def replace(self, **changes: Any) -> ModelSpec:
        """A copy with other values; `height` and `width_px` reach into the preprocessing."""
        pre = {key: changes.pop(name) for name, key in (("height", "height"), ("width_px", "width")) if name in changes}
        if pre:
            changes["preprocessing"] = dataclasses.replace(changes.get("preprocessing", self.preprocessing), **pre)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        return {k: v for k, v in values.items() if k not in _SINCE_FORMAT_1 or v != defaults[k]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelSpec:
        """The spec that `to_dict` wrote.

        Raises:
            SpecError: a field is unknown, missing, or has a value that cannot be.
        """
        data = dict(data)
        for key, kind in (("preprocessing", Preprocessing), ("weights", WeightsCard)):
            if key in data:
                data[key] = strict(kind, data[key], key)
        return strict(cls, data, "model")


def foreign_spec(name: str, dimension: int, preprocessing: Preprocessing, weights: WeightsCard) -> ModelSpec:
    """Describe somebody else's network, which gives a feature of `dimension` numbers, no masks and no visibility."""
    return ModelSpec(
        name=name,
        width=dimension,
        heads=1,
        layers=1,
        mask_blocks=(1,),
        joint_dim=0,
        hmg="lite",
        preprocessing=preprocessing,
        weights=weights,
        masks=False,
    )


def strict(kind: type, data: Any, what: str) -> Any:
    """Build the dataclass `kind` from a dict, refusing unknown and missing fields by name.

    Raises:
        SpecError: naming the field.
    """
    if not isinstance(data, dict):
        raise SpecError(f"{what}: expected an object, got {type(data).__name__}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in data:
        if name not in fields:
            raise SpecError(f"{what}: unknown field {name!r}.{nearest(name, fields)}")
    missing = [
        n
        for n, f in fields.items()
        if n not in data and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise SpecError(f"{what}: missing field {', '.join(missing)}")
    try:
        return kind(**data)
    except TypeError as error:
        raise SpecError(f"{what}: {error}") from error


PRESETS: dict[str, ModelSpec] = {
    "dpm-b": ModelSpec(name="dpm-b", width=768, heads=12, quick_gelu=True),
    "dpm-s": ModelSpec(name="dpm-s", width=384, heads=6, joint_dim=384, hmg="lite"),
    "dpm-t": ModelSpec(name="dpm-t", width=192, heads=3, joint_dim=192, hmg="lite"),
    "dpm-n": ModelSpec(
        name="dpm-n",
        width=192,
        heads=3,
        layers=2,
        joint_dim=0,
        hmg="lite",
        mask_blocks=(1, 2),
        stem="lite0-deep",
        visibility="map",
        stripes=6,
        preprocessing=Preprocessing(height=192, width=96),
    ),
}
"""The sizes: the paper's CLIP ViT-B/16, two smaller ones of the same code, and one for edges: a convolutional stem
with ImageNet weights, few transformer blocks, a map of what is seen, and a feature pooled over it in stripes."""
