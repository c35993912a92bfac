"""Recipes: functions that return a full config. `dpm-edge train RECIPE` looks them up here by name."""

from __future__ import annotations

from collections.abc import Callable

from dpm_edge.errors import SpecError, nearest
from dpm_edge.train.config import (
    PACKAGE,
    AugmentConfig,
    Config,
    CoveringConfig,
    DataConfig,
    EvaluateConfig,
    LossConfig,
    ModelConfig,
    OptimiserConfig,
    SaliencyConfig,
    ScheduleConfig,
    TransferConfig,
)


def _paper(name: str) -> Config:
    """DPM++ on CLIP's ViT-B/16: two-stage text supervision, HMG, HEM, SPT, anchoring [P]. Needs model.clip=FILE."""
    return Config(
        recipe=name,
        model=ModelConfig(preset="dpm-b", clip="needed"),
        data=DataConfig(identities=16, pictures=4),
        augment=AugmentConfig(erase=0.0),
        transfer=TransferConfig(probability=0.5),
        loss=LossConfig(i2t=1.0, anchor=1.0, texts="needed", kernel="triton"),
        optimiser=OptimiserConfig(
            lr=5e-5, backbone_lr=0.1, weight_decay=1e-4, betas=(0.9, 0.999), optimisation="alternating", ema=0.0
        ),
        schedule=ScheduleConfig(epochs=60, shape="step", warmup_epochs=10.0, step_at=(30, 50)),
    )


def occluded_duke() -> Config:
    """The paper's main setting, Occluded-Duke."""
    return _paper("occluded_duke")


def market() -> Config:
    """The paper's setting on whole people, Market-1501."""
    return _paper("market")


def msmt17() -> Config:
    """The paper's setting on MSMT17."""
    return _paper("msmt17")


def _from_scratch(name: str) -> Config:
    """A small ViT without good first weights: AdamW at a high rate, strong augmentation, a long cosine.

    The triplet loss reads the feature after the neck [R]: before it, where nothing fixes the scale, batch-hard triplets
    shrink the features of an untrained network to one point and teach nothing from then on.
    """
    return Config(
        recipe=name,
        model=ModelConfig(preset="dpm-t", neck="after", drop_path=0.05),
        data=DataConfig(identities=32, pictures=4),
        augment=AugmentConfig(erase=0.0, scale=0.15, colour=0.25, grey=0.05, blur=0.1),
        transfer=TransferConfig(probability=0.5),
        loss=LossConfig(label_smoothing=0.1, triplet_side="after"),
        optimiser=OptimiserConfig(lr=1e-3, prototype_lr=5.0, weight_decay=0.05, optimisation="joint"),
        schedule=ScheduleConfig(epochs=120, warmup_epochs=5.0),
        saliency=SaliencyConfig(source="segmentation", threshold=0.0),
        evaluate=EvaluateConfig(every=20),
    )


def market_small() -> Config:
    """dpm-s on Market-1501 people, for one H100 and 20 minutes; start from rendered people: model.init=CHECKPOINT."""
    config = _from_scratch("market_small")
    config.model.preset = "dpm-s"
    config.optimiser.lr = 5e-4
    return config


def market_tiny(name: str = "market_tiny") -> Config:
    """dpm-t on Market-1501 people, from the shipped weights: the ablation's full row."""
    config = _from_scratch(name)
    config.model.init = "dpm-t"
    return config


def market_tiny_cpu() -> Config:
    """dpm-t at 128×64 on two cores, under 100 minutes, from the shipped weights."""
    config = market_tiny("market_tiny_cpu")
    config.model.height, config.model.width = 128, 64
    config.optimiser.frozen_blocks = 4
    config.data = DataConfig(identities=16, pictures=4)
    config.schedule = ScheduleConfig(epochs=60, minutes=75.0, warmup_epochs=2.0)
    return config


def rendered_tiny() -> Config:
    """dpm-t from nothing, on rendered people: how the weights that ship are made."""
    config = _from_scratch("rendered_tiny")
    config.transfer.probability = 0.0  # the renderer puts real occluders in front
    config.augment = AugmentConfig(erase=0.4, scale=0.2, colour=0.4, grey=0.1, blur=0.35, noise=8.0)
    return config


def rendered_nano() -> Config:
    """dpm-n on rendered people of the third edition, half of them covered; its settings are those of the ladder."""
    config = _from_scratch("rendered_nano")
    config.model = ModelConfig(preset="dpm-n", height=192, width=96, neck="after", stem=PACKAGE)
    config.transfer.probability = 0.0
    config.covering = CoveringConfig(probability=0.5, clutter=True, passers_by=0.35)
    config.saliency = SaliencyConfig(source="labels", threshold=0.0)
    config.augment = AugmentConfig(erase=0.0, scale=0.1, colour=0.25, blur=0.5, mix_style=0.5, background=0.5)
    config.data = DataConfig(
        identities=32,
        pictures=4,
        described="rendered people alone (dpm_edge.train.synthetic, third edition); first weights: "
        "EfficientNet-Lite0, ImageNet (Apache-2.0)",
        licence="Apache-2.0",
    )
    config.loss = LossConfig(label_smoothing=0.1, triplet_side="after", visibility=1.0, pull=0.5)
    config.optimiser = OptimiserConfig(
        lr=1e-3, prototype_lr=5.0, weight_decay=0.05, frozen_stages=3, fixed_statistics=True, stem_lr=0.3, ema=0.995
    )
    config.schedule = ScheduleConfig(epochs=60, minutes=60.0, warmup_epochs=1.0)
    config.evaluate = EvaluateConfig(every=5, shares=(0.0, 0.2, 0.4, 0.6))
    return config


RECIPES: dict[str, Callable[[], Config]] = {
    f.__name__: f
    for f in (occluded_duke, market, msmt17, market_small, market_tiny, market_tiny_cpu, rendered_tiny, rendered_nano)
}


def recipe(name: str) -> Config:
    """The named recipe's config. Raises SpecError with the nearest name when there is none."""
    if name not in RECIPES:
        raise SpecError(f"expected a recipe, got {name!r}.{nearest(name, RECIPES)}")
    return RECIPES[name]()
