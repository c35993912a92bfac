"""The settings that benchmarks/gpu/train_nano.py tries, side by side: rungs, finals, and what goes on from finals."""

from __future__ import annotations

import dataclasses

from dpm_edge.spec import PRESETS

SHALLOW = "dpm-n-shallow"
PRESETS[SHALLOW] = dataclasses.replace(PRESETS["dpm-n"], name=SHALLOW, stem="lite0")
"""dpm-n as it was before: five stages of EfficientNet-Lite0 in place of seven."""
BASE = [
    "model.height=192", "model.width=96", "model.stripes=6", "model.stem=", "data.identities=32",
    "augment.scale=0.1", "augment.colour=0.25", "augment.grey=0", "augment.blur=0.1", "augment.noise=0",
    "optimiser.stem_lr=0.3", "optimiser.ema=0.998", "schedule.epochs=100", "schedule.warmup_epochs=5",
    "augment.background=0", "augment.mix_style=0", "covering.passers_by=0", "covering.clutter=false",
]  # fmt: skip
LOOKS: dict[str, list[str]] = {
    "base": [],
    "levels and sharpening": ["augment.levels=0.7", "augment.sharpen=2"],
    "surroundings": ["augment.background=0.5"],
    "both": ["augment.levels=0.7", "augment.sharpen=2", "augment.background=0.5"],
}
"""What brings rendered pictures nearer to photographs."""
CHANGES: dict[str, list[str]] = {
    "slower stem": ["optimiser.stem_lr=0.1"],
    "deep": ["model.preset=dpm-n"],
    "deep, slower stem": ["model.preset=dpm-n", "optimiser.stem_lr=0.1"],
}
"""One more change each, on top of both."""
NEVER_ADOPTED = ("deep, slower stem",)
RUNGS: dict[str, list[str]] = {
    name: [f"model.preset={SHALLOW}", *fields]
    for name, fields in {**LOOKS, **{n: [*LOOKS["both"], *fields] for n, fields in CHANGES.items()}}.items()
}
GAIN = 0.3
"""Points of score over `base` (a look) or over both looks (a change) from which a rung's setting is adopted."""
ON: dict[str, list[str]] = {
    "on": [],
    "on, larger batch": ["data.identities=64"],
    "on, more covering": ["covering.probability=0.7"],
    "on, more surroundings": ["augment.background=0.8", "augment.levels=0.7", "augment.sharpen=2"],
    "on, half the rate": ["optimiser.lr=2.5e-4"],
    "on, passers-by": ["covering.passers_by=0.35"],
}
"""Finals that go on from the best rung: one other setting each, and other draws."""
PASSERS_BY = ["covering.passers_by=0.35", "covering.clutter=true"]
LESSON = [*PASSERS_BY, "loss.own=4", "loss.teacher=dpm-n"]
"""Covered pictures, a third of them by other people, drawn to what the dpm-n that ships finds in them uncovered."""
BLUR, STYLES, PLACES = ["augment.blur=0.5"], ["augment.mix_style=0.5"], ["augment.panoramas=pack"]
FEWER_FROZEN = ["optimiser.frozen_stages=1"]
FURTHER: dict[str, list[str]] = {
    "on, passers-by": PASSERS_BY,
    "on, lesson": LESSON,
    "on, lesson, places": [*LESSON, *PLACES],
    "on, lesson, more covering": [*LESSON, "covering.probability=0.7", "covering.most=0.8"],
    "on, lesson, blur": [*LESSON, *BLUR],
    "again": [],
    "again, places": PLACES,
    "again, faster stem": ["optimiser.stem_lr=1"],
    "again, fewer frozen": FEWER_FROZEN,
    "again, styles mixed": STYLES,
}
"""Rows of `further`: "on" goes on from the weights that ship, "again" starts from ImageNet's; one change each."""
_ALL = [*BLUR, *STYLES, *FEWER_FROZEN]
COMBINED: dict[str, list[str]] = {
    "on, all": [*LESSON, *_ALL],
    "on, all, places": [*LESSON, *_ALL, *PLACES],
    "on, free": [*PASSERS_BY, *_ALL],
    "again, all": [*PASSERS_BY, *_ALL, *PLACES],
}
"""Rows of `further --combined`: what gained, together; "on" goes on from the best row, "free" has no `own`."""
