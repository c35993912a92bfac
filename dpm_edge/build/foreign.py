"""Somebody else's network, read from an ONNX file or an OpenVINO IR: what its input and its feature are.

What the file says is taken from it; what it cannot say (colours, mean, std) is asked for by name. Nothing is guessed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto, numpy_helper

from dpm_edge.build import openvino_ir, portable
from dpm_edge.build.adopt import Run, adopt, check_same, prepare, session
from dpm_edge.errors import CheckpointError, SpecError
from dpm_edge.families import family, normalisation
from dpm_edge.spec import ModelSpec, Preprocessing, WeightsCard, foreign_spec

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_CLASS_NAMES = re.compile(r"logit|prob|class|cls_score|score|softmax", re.IGNORECASE)
_CHECKED_PICTURES = 3


@dataclass(frozen=True, kw_only=True)
class ForeignOptions:
    """What a user says of a network that dpm-edge did not export; None: nothing was said."""

    family: str | None = None
    """One of `families.FAMILIES`: fills in what the others leave open."""
    input: str | None = None
    """Height × width in pixels, such as "256x128"; read from the file where it is fixed there."""
    color: str | None = None
    """"rgb" or "bgr"."""
    mean: str | None = None
    """A name of `families.NORMALISATIONS`, which brings its std, or three numbers of values in 0..1."""
    std: str | None = None
    """As `mean`."""
    interpolation: str | None = None
    """"bilinear", "area" or "bicubic"; bilinear where neither this nor the family says."""
    feature: str | None = None
    """Name of the output, or of any other tensor of the graph, that holds the feature."""
    licence: str | None = None
    """Licence of the weights, for the manifest."""

    def given(self) -> list[str]:
        """Names of the options that were given, as they are typed."""
        return [f"--{f.name}" for f in fields(self) if getattr(self, f.name) is not None]


@dataclass(frozen=True)
class Foreign:
    """A foreign network in the portable form."""

    model: ModelProto
    spec: ModelSpec
    fingerprint: str
    """sha256 of the file and of everything that was said of it: the same on every machine and with every library."""


def read(path: Path, options: ForeignOptions) -> Foreign:
    """Read a foreign ONNX or OpenVINO IR, and decide what its input and feature are.

    The portable form is compared with the file itself before it is given.

    Raises:
        CheckpointError: it is no network of pictures to features, or is damaged; one line says what it is.
        SpecError: something that the file cannot say was not said, or contradicts the file.
        MissingLibrary: onnxruntime is not installed.
    """
    if path.suffix.lower() == ".xml":
        model, original = openvino_ir.load(path)
        content = path.read_bytes() + path.with_suffix(".bin").read_bytes()
        return made_of(path, model, content, options, original)
    model = _load(path)
    return made_of(path, model, _content(path), options)


def made_of(
    path: Path, model: ModelProto, content: bytes, options: ForeignOptions, original: Run | None = None
) -> Foreign:
    """As `read`, for a graph that was loaded from `path`, whose bytes are `content`.

    original: runs the file itself; ONNX Runtime on the graph without.
    """
    name = path.name
    image = _image_input(model, name)
    inferred = _inferred(model, name)
    feature = _feature(inferred, image.name, options.feature, name)
    _check_weights(model, name)
    pre = _preprocessing(image, options, path, inferred)
    model = _with_size(model, image.name, pre)
    run = original or _runner(model, image, feature)
    inputs = some_inputs(pre)
    raw = run(inputs[:1])
    if raw.ndim != 2:
        raise CheckpointError(f"expected a feature (batch, D), got {feature} {raw.shape} in {name}. {_ADVICE}")
    card = WeightsCard(licence=options.licence or "not stated", data="not stated", recipe=name)
    spec = foreign_spec(path.stem, raw.shape[1], pre, card)
    adopted = adopt(model, image.name, feature, pre.height, pre.width, raw.shape[1])
    check_same(adopted, run, inputs, name)
    said = json.dumps({"spec": spec.to_dict(), "feature": feature}, sort_keys=True).encode()
    return Foreign(adopted, spec, hashlib.sha256(content + b"\n" + said).hexdigest())


_ADVICE = "Name the tensor that holds one vector a picture: --feature NAME."


def describe(model: ModelProto) -> str:
    """Inputs and outputs of a graph in words, such as "input images float32 (batch, 3, 256, 128)"."""
    weights = {t.name for t in model.graph.initializer}
    inputs = [v for v in model.graph.input if v.name not in weights]
    return f"input {_listed(inputs)}; output {_listed(model.graph.output)}"


def _listed(values: Iterable[ValueInfoProto]) -> str:
    named = [_shown(v) for v in values]
    return ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "") if named else "none"


def _shown(value: ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    kind = TensorProto.DataType.Name(tensor.elem_type).lower() if tensor.elem_type else "of unknown type"
    kind = {"float": "float32"}.get(kind, kind)
    return f"{value.name} {kind} ({', '.join(str(s) for s in _sizes(value))})"


def _sizes(value: ValueInfoProto) -> list[int | str]:
    return [d.dim_value or d.dim_param or "?" for d in value.type.tensor_type.shape.dim]


def _load(path: Path) -> ModelProto:
    """The graph with all of its weights, those in files beside it too.

    Raises:
        CheckpointError: it is missing, damaged, or lacks a file of weights.
    """
    model, _ = portable.parse(path)
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise CheckpointError(
            f"expected {path} with its weights in {', '.join(_beside(model)[:3])} beside it, got none that can be read "
            f"({str(error).splitlines()[0][:160]}). Copy that file too."
        ) from error
    return model


def _beside(model: ModelProto) -> list[str]:
    """Names of the files beside an ONNX that hold weights of it."""
    return sorted({e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"})


def _content(path: Path) -> bytes:
    """What the fingerprint is taken of: the file, and the weights beside it."""
    model, data = portable.parse(path)
    return data + b"".join((path.parent / name).read_bytes() for name in _beside(model))


def _image_input(model: ModelProto, name: str) -> ValueInfoProto:
    """The one input, which takes pictures.

    Raises:
        CheckpointError: there are several, or it takes something else.
    """
    weights = {t.name for t in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    said = f"{_listed(inputs)} in {name}"
    if len(inputs) != 1:
        pictures = sum(len(_sizes(value)) == 4 for value in inputs)
        kind = "two pictures at once" if pictures > 1 else "more than a picture" if pictures else "no picture"
        raise CheckpointError(
            f"expected a network with one input, a picture, got {len(inputs)}: {said}. It takes {kind}; export "
            "the part that embeds one picture."
        )
    (value,) = inputs
    sizes, kind = _sizes(value), value.type.tensor_type.elem_type
    whole = "float32 input (batch, 3, H, W)"
    if len(sizes) != 4:
        hint = "It looks like a network of text or tokens" if kind in (TensorProto.INT64, TensorProto.INT32) else ""
        raise CheckpointError(f"expected a {whole}, got {said}. {hint or 'It takes no pictures'}: embed pictures.")
    if sizes[1] != 3 and sizes[3] == 3:
        raise CheckpointError(
            f"expected a {whole}, got {said}: channels come last (NHWC). Export it with channels first (NCHW)."
        )
    if isinstance(sizes[1], int) and sizes[1] != 3:
        raise CheckpointError(f"expected a {whole}, got {said}. Export a network of colour pictures.")
    if kind not in FLOATS:
        raise CheckpointError(
            f"expected a {whole}, got {said}. Export it without the conversion of its pixels inside the graph."
        )
    return value


def _inferred(model: ModelProto, name: str) -> ModelProto:
    """The graph with types and sizes of its tensors as far as they follow from it.

    Raises:
        CheckpointError: the graph contradicts itself, or has operators outside the standard, or is quantised.
    """
    foreign = sorted({f"{n.domain}::{n.op_type}" for n in model.graph.node if n.domain not in ("", "ai.onnx")})
    if foreign:
        raise CheckpointError(
            f"expected standard ONNX operators, got {', '.join(foreign[:4])} in {name}. Export it for plain ONNX."
        )
    if any(n.op_type in ("QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger") for n in model.graph.node):
        raise CheckpointError(
            f"expected a float network, got {name}, which is quantised. Give the float file and --precision int8."
        )
    try:
        onnx.checker.check_model(model)
        return onnx.shape_inference.infer_shapes(model, strict_mode=False)
    except Exception as error:  # ValidationError, InferenceError, RuntimeError
        raise CheckpointError(
            f"expected a valid ONNX graph, got {name}: {str(error).strip().splitlines()[0][:200]}. Copy it again."
        ) from error


def _feature(model: ModelProto, image: str, wanted: str | None, name: str) -> str:
    """The tensor that holds the feature: what was named, else the one output that can be one.

    Raises:
        CheckpointError: no output can be a feature.
        SpecError: several could be, or there is no tensor of that name.
    """
    known = {v.name: v for v in (*model.graph.value_info, *model.graph.output)}
    outputs = list(model.graph.output)
    if wanted is not None:
        tensors = {out for node in model.graph.node for out in node.output}
        if wanted not in tensors:
            raise SpecError(
                f"expected --feature to name a tensor of {name}, got {wanted!r}. It gives {_listed(outputs)}."
            )
        if wanted in known:
            _check_feature(known[wanted], name)
        return wanted
    fitting = [value for value in outputs if not _why_no_feature(value)]
    if not fitting:
        _check_feature(outputs[0], name, outputs)
    if len(fitting) > 1:
        raise SpecError(
            f"expected --feature, one of the outputs of {name}, got none, and several could be it: {_listed(fitting)}."
        )
    (value,) = fitting
    last = next(node for node in model.graph.node if value.name in node.output)
    if last.op_type in ("Softmax", "LogSoftmax") or _CLASS_NAMES.search(value.name) or _sizes(value)[1:] == [1000]:
        before = _before_classifier(model, value.name)
        hint = f" (before its last product lies {before!r})" if before else ""
        raise CheckpointError(
            f"expected a feature, got {_shown(value)} in {name}, which reads like the classes of a classifier. Name "
            f"the tensor before its classes: --feature NAME{hint}."
        )
    return value.name


def _check_feature(value: ValueInfoProto, name: str, outputs: list[ValueInfoProto] | None = None) -> None:
    if reason := _why_no_feature(value):
        several = f", and {len(outputs) - 1} more" if outputs and len(outputs) > 1 else ""
        raise CheckpointError(
            f"expected a feature (batch, D), got {_shown(value)}{several} in {name}: {reason}. {_ADVICE}"
        )


def _why_no_feature(value: ValueInfoProto) -> str:
    """Why a tensor cannot be a feature, "" where it can."""
    sizes, kind = _sizes(value), value.type.tensor_type.elem_type
    if kind and kind not in FLOATS:
        return "it holds no float numbers"
    if len(sizes) == 3:
        return "it looks like the boxes of a detector, or like tokens"
    if len(sizes) == 4 and sizes[2:] != [1, 1]:
        return "it is a feature map"
    if len(sizes) in (0, 2) or (len(sizes) == 4):
        return "it is one number a picture" if sizes[1:] == [1] else ""
    return f"it has {len(sizes)} dimensions"


def _before_classifier(model: ModelProto, output: str) -> str:
    """The input of the last matrix product before an output, "" where there is none."""
    made_by = {out: node for node in model.graph.node for out in node.output}
    while (node := made_by.get(output)) is not None:
        if node.op_type in ("Gemm", "MatMul"):
            return node.input[0]
        output = node.input[0]
    return ""


def _check_weights(model: ModelProto, name: str) -> None:
    """Refuse NaN and infinity among the weights."""
    for tensor in model.graph.initializer:
        if tensor.data_type in FLOATS and not np.isfinite(numpy_helper.to_array(tensor)).all():
            raise CheckpointError(
                f"expected finite weights, got NaN or infinity in {tensor.name!r} of {name}. Export it again."
            )


def _preprocessing(image: ValueInfoProto, options: ForeignOptions, path: Path, model: ModelProto) -> Preprocessing:
    """How a crop becomes the input: what was said, then the family's word, then the file's.

    Raises:
        SpecError: something was not said, or contradicts the file.
    """
    base = family(options.family) if options.family else None
    mean, std = normalisation(options.mean, options.std)
    height, width = _size(image, options.input, base, path)
    color = options.color or (base.color if base else None)
    mean, std = mean or (base.mean if base else None), std or (base.std if base else None)
    missing = [name for name, value in (("--color", color), ("--mean", mean), ("--std", std)) if value is None]
    if missing:
        raise SpecError(
            f"expected {', '.join(missing)} for {path.name} (or --family, which says all of it), got none. It takes "
            f"{describe(model)}. Such as --color rgb --mean imagenet."
        )
    assert color is not None and mean is not None and std is not None, "checked above"
    pre = Preprocessing(height=height, width=width, color=color, mean=mean, std=std)
    interpolation = options.interpolation or (base.interpolation if base else None)
    return replace(pre, interpolation=interpolation) if interpolation else pre


def _size(image: ValueInfoProto, said: str | None, base: Preprocessing | None, path: Path) -> tuple[int, int]:
    """Height and width of the input."""
    in_file = _sizes(image)[2:]
    match = re.fullmatch(r"(\d+)[x×](\d+)", said or "")
    if said is not None and match is None:
        raise SpecError(f"expected --input as height x width, such as 256x128, got {said!r}.")
    if match is None and all(isinstance(size, int) for size in in_file):
        return int(in_file[0]), int(in_file[1])
    if match is None and base is None:
        raise SpecError(
            f"expected --input, such as 256x128, as {path.name} takes any size ({_shown(image)}), got none."
        )
    wanted = (int(match[1]), int(match[2])) if match else (base.height, base.width) if base else (0, 0)
    for have, want in zip(in_file, wanted):
        if isinstance(have, int) and have != want:
            raise SpecError(
                f"expected the input size of {path.name}, {in_file[0]}x{in_file[1]} (height x width), got "
                f"{wanted[0]}x{wanted[1]}. Leave --input out, or export the network for that size."
            )
    return wanted


def _with_size(model: ModelProto, image: str, pre: Preprocessing) -> ModelProto:
    """A copy whose input has the sizes of the preprocessing."""
    made = ModelProto()
    made.CopyFrom(model)
    (value,) = [v for v in made.graph.input if v.name == image]
    for dim, size in zip(value.type.tensor_type.shape.dim[1:], (3, pre.height, pre.width)):
        dim.Clear()
        dim.dim_value = size
    return made


def _runner(model: ModelProto, image: ValueInfoProto, feature: str) -> Run:
    """Runs a graph on one picture and gives its feature, flat.

    A float16 graph is widened first: ONNX Runtime's CPU provider crashes on some.
    """
    made = ModelProto()
    made.CopyFrom(model)
    prepare(made, image.name, feature)
    opened = session(made)
    batch = image.type.tensor_type.shape.dim[0].dim_value

    def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        fed = np.repeat(inputs, batch, axis=0) if batch > 1 else inputs
        try:
            found = opened.run([feature], {image.name: fed})[0][: len(inputs)]
        except Exception as error:
            raise CheckpointError(
                f"expected a graph that ONNX Runtime can run, got: {str(error).strip().splitlines()[0][:200]}."
            ) from error
        return found.reshape(len(inputs), -1) if found.ndim == 4 and found.shape[2:] == (1, 1) else found

    return run


def some_inputs(pre: Preprocessing) -> NDArray[np.float32]:
    """A few pictures of coarse noise (n, 3, H, W), scaled as the network's input is."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (_CHECKED_PICTURES, 3, (pre.height + 15) // 16, (pre.width + 15) // 16))
    pixels = coarse.repeat(16, axis=2).repeat(16, axis=3)[:, :, : pre.height, : pre.width]
    scale, shift = (np.asarray(v).reshape(1, 3, 1, 1) for v in pre.affine())
    return (scale * pixels + shift).astype(np.float32)
