"""How other projects turn a crop into their network's input, each read off that project's own published code.

A family says size, channel order, mean, std and the resize; what it says can be overridden one by one.
"""

from __future__ import annotations

from dpm_edge.errors import SpecError, nearest
from dpm_edge.spec import Preprocessing

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": IMAGENET,
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "pixels": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
"""Name → mean and std of values in 0..1. "unit": values stay in 0..1; "pixels": they are 0..255, as "0..255 in" models
and those that normalise inside the graph want; "clip": OpenAI's CLIP (clip/clip.py, `_transform`)."""

_IMAGENET_RGB = Preprocessing(height=256, width=128, color="rgb", mean=IMAGENET[0], std=IMAGENET[1])
_PIXELS = NORMALISATIONS["pixels"]

FAMILIES: dict[str, Preprocessing] = {
    # KaiyangZhou/deep-person-reid, torchreid/utils/feature_extractor.py: image_size (256, 128), pixel_mean and
    # pixel_std of ImageNet, PIL's RGB, T.Resize with its default, bilinear. BoxMOT's copies of these weights are fed
    # alike (cv2.resize, RGB, the same mean and std).
    "torchreid": _IMAGENET_RGB,
    # JDAI-CV/fast-reid, tools/deploy/onnx_inference.py: RGB, cv2.INTER_CUBIC, float 0..255 without more;
    # fastreid/modeling/meta_arch/baseline.py subtracts pixel_mean and divides by pixel_std inside the network, so
    # that an exported graph holds them.
    "fast-reid": Preprocessing(
        height=256, width=128, color="rgb", mean=_PIXELS[0], std=_PIXELS[1], interpolation="bicubic"
    ),
    # Syliz517/CLIP-ReID, configs/person/vit_clipreid.yml: SIZE_TEST [256, 128], PIXEL_MEAN and PIXEL_STD 0.5;
    # datasets/make_dataloader_clipreid.py: val_transforms are T.Resize with its default (bilinear) on PIL's RGB.
    "clip-reid": Preprocessing(height=256, width=128, color="rgb", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    # openvinotoolkit/open_model_zoo, models/intel/person-reidentification-retail-0277 … 0288/README.md: 1×3×256×128,
    # "the expected color order is BGR", features compared by cosine; the scaling is inside the network. 0031 is 96×48.
    "openvino": Preprocessing(height=256, width=128, color="bgr", mean=_PIXELS[0], std=_PIXELS[1]),
    # NVIDIA TAO, docs.nvidia.com "ReIdentificationNet", experiment spec: input 256×128, pixel_mean [0.485, 0.456,
    # 0.406], pixel_std [0.226, 0.226, 0.226]; reid_embedding is compared by cosine.
    "tao": Preprocessing(height=256, width=128, color="rgb", mean=IMAGENET[0], std=(0.226, 0.226, 0.226)),
}


def family(name: str) -> Preprocessing:
    """The preprocessing of a family's models.

    Raises:
        SpecError: no such family is known.
    """
    if name not in FAMILIES:
        raise SpecError(f"expected a model family, got {name!r}.{nearest(name, FAMILIES)}")
    return FAMILIES[name]


def normalisation(
    mean: str | None, std: str | None
) -> tuple[tuple[float, float, float] | None, tuple[float, float, float] | None]:
    """Mean and std out of what was written: a name of NORMALISATIONS, or three numbers such as 0.485,0.456,0.406.

    A name for `mean` brings its std, unless `std` says otherwise. None: nothing was said.

    Raises:
        SpecError: it is neither a name nor three numbers.
    """
    named = NORMALISATIONS.get(mean or "")
    if std is None and named is not None:
        return named
    return (
        None if mean is None else _three(mean, "mean", 0),
        None if std is None else _three(std, "std", 1),
    )


def _three(text: str, what: str, place: int) -> tuple[float, float, float]:
    if text in NORMALISATIONS:
        return NORMALISATIONS[text][place]
    try:
        a, b, c = (float(part) for part in text.split(","))
    except ValueError:
        raise SpecError(
            f"expected --{what} as three numbers such as 0.485,0.456,0.406, or one of {', '.join(NORMALISATIONS)}, got "
            f"{text!r}."
        ) from None
    return a, b, c
