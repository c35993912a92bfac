"""Checkpoints: NAME.safetensors (the weights) beside NAME.json (the spec and everything needed to rebuild the net).

Loading is strict. Nothing is ever unpickled: a pickle is refused by its first bytes, whatever its name.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from dpm_edge import shipped
from dpm_edge.errors import CheckpointError, SpecError
from dpm_edge.files import write_whole
from dpm_edge.model.foreign_network import AnyNetwork, ForeignNetwork
from dpm_edge.model.network import DPM
from dpm_edge.spec import ModelSpec

FORMAT = 1
_NOT_IN_FINGERPRINT = ("name", "weights", "mask_mean")
"""Fields of the spec that do not change a single feature or mask."""


def save(net: AnyNetwork, path: str | Path, *, half: bool = False) -> Path:
    """Write `path`.safetensors and `path`.json (a suffix .safetensors or .json in `path` is ignored), each whole.

    Everything in the network is kept, classifier prototypes included. `half` rounds the network's own
    parameters to float16, in place, and stores them so: half the size. Returns the path of the weights.
    """
    weights = _stem(Path(path)).with_suffix(".safetensors")
    weights.parent.mkdir(parents=True, exist_ok=True)
    if half:
        for parameter in net.parameters():
            parameter.data.copy_(parameter.data.half())
    state = {name: tensor.detach().contiguous().cpu() for name, tensor in net.state_dict().items()}
    if half:
        state.update({name: tensor.detach().half().contiguous().cpu() for name, tensor in net.named_parameters()})
    card = {
        "format": FORMAT,
        "model": net.spec.to_dict(),
        "classes": 0 if net.prototypes is None else len(net.prototypes),
        "fingerprint": fingerprint(net),
    }
    if isinstance(net, ForeignNetwork):
        card["network"] = net.network
    write_whole(weights, to_safetensors(state))
    write_whole(weights.with_suffix(".json"), (json.dumps(card, indent=2) + "\n").encode())
    return weights


def load(path: str | Path) -> DPM:
    """The network of a checkpoint of ours, as `load_any` loads it.

    Raises:
        CheckpointError: as `load_any`; or it is an imported network.
    """
    net = load_any(path)
    if isinstance(net, ForeignNetwork):
        raise CheckpointError(
            f"expected a network of ours, got {path}, an imported {net.network['kind']}. It can be built, evaluated, "
            "adapted (`dpm-edge adapt`) and taught masks (`dpm-edge train mask`)"
        )
    return net


def load_any(path: str | Path) -> AnyNetwork:
    """The network of a checkpoint, ours or imported, float32, on the CPU, in evaluation mode.

    `path`: NAME.safetensors, NAME.json, NAME, a folder that holds one such pair, or the shipped model's name.

    Raises:
        CheckpointError: a file is missing, damaged or a pickle; the JSON lacks or invents a field; a tensor is
            missing, unknown, of another size or not finite (each is named); or the two files do not belong together.
    """
    weights = find(Path(path))
    card = _read_card(weights.with_suffix(".json"))
    try:
        spec = ModelSpec.from_dict(card["model"])
    except SpecError as error:
        raise CheckpointError(f"{weights.with_suffix('.json')}: {error}") from error
    net: AnyNetwork
    if spec.foreign:
        net = ForeignNetwork(spec, card.get("network"))
    else:
        net = DPM(spec, classes=card["classes"])
    load_strictly(net, read_safetensors(weights), source=f"{weights} (model {spec.name!r})")
    if fingerprint(net) != card["fingerprint"]:
        raise CheckpointError(
            f"{weights} and {weights.with_suffix('.json').name} do not belong together (the fingerprint differs): "
            "one of them was edited or replaced. Restore the pair, or save the network again"
        )
    return net.eval()


def find(path: Path) -> Path:
    """The .safetensors file that `path` means.

    Raises:
        CheckpointError: there is none, a folder holds several, or the file is a pickle.
    """
    path = shipped.resolve(path, ".safetensors")
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise CheckpointError(
                f"expected one checkpoint in the folder, but {path} holds {len(found)} .safetensors files. Name it"
            )
        return found[0]
    if path.is_file():
        refuse_pickle(path)
    weights = _stem(path).with_suffix(".safetensors")
    if not weights.is_file():
        raise CheckpointError(
            f"{weights} does not exist; a checkpoint is NAME.safetensors beside NAME.json, or a model that ships "
            f"({', '.join(shipped.MODELS)})"
        )
    return weights


def refuse_pickle(path: Path) -> None:
    """Raise CheckpointError where a file is a pickle or a torch archive, which could run code when it is read."""
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        raise CheckpointError(
            f"{path} is a pickle (torch.save), which may run code when it is opened; it was not opened. "
            "A checkpoint is NAME.safetensors beside NAME.json; `dpm-edge import` makes one of another project's file"
        )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a .safetensors file, on the CPU.

    Raises:
        CheckpointError: the file is a pickle, is cut short or is not safetensors.
    """
    refuse_pickle(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is damaged or cut short ({error}). Copy it again from its source"
        ) from error


def load_strictly(module: torch.nn.Module, tensors: dict[str, Tensor], *, source: str) -> None:
    """Copy `tensors` into `module`; names and sizes must be exactly the module's. Floats become float32.

    Raises:
        CheckpointError: naming each tensor that is missing, unknown, of another size or not finite.
    """
    wanted = module.state_dict()
    faults = [f"{name} is missing" for name in wanted if name not in tensors]
    faults += [f"{name} is unknown" for name in tensors if name not in wanted]
    for name, tensor in tensors.items():
        if name not in wanted:
            continue
        if tensor.shape != wanted[name].shape:
            faults.append(f"{name}: expected {tuple(wanted[name].shape)}, got {tuple(tensor.shape)}")
        elif tensor.is_floating_point() and not torch.isfinite(tensor).all():
            faults.append(f"{name} holds NaN or infinity")
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise CheckpointError(f"{source} does not fit the network: {'; '.join(faults[:5])}{more}")
    module.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()})


def fingerprint(net: AnyNetwork) -> str:
    """sha256 (hex) over the weights and the spec fields that decide what an engine computes.

    Prototypes, a neck that retrieval does not use, camera embedding, an unused joint projection, the model's name, its
    weights card and `mask_mean` are left out: they change neither a feature nor a mask.
    """
    spec = {key: value for key, value in net.spec.to_dict().items() if key not in _NOT_IN_FINGERPRINT}
    if isinstance(net, ForeignNetwork):
        spec["network"] = net.network
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode())
    unused = {"backbone.camera_embedding"} | ({"backbone.proj"} if net.spec.feature == "cls" else set())
    parts = ("backbone.", "mask_generator.", "body.", "sight.") + (("neck.",) if net.spec.neck == "after" else ())
    for name, tensor in sorted(net.state_dict().items()):
        served = name.startswith(parts) and not name.endswith("num_batches_tracked")
        if served and name not in unused:
            array = tensor.detach().float().cpu().contiguous().numpy()
            digest.update(f"{name}{array.shape}".encode())
            digest.update(array.tobytes())
    return digest.hexdigest()


def _stem(path: Path) -> Path:
    """`path` with a suffix that `with_suffix` replaces rather than the last part of a dotted name."""
    return path if path.suffix in (".safetensors", ".json") else path.with_name(path.name + ".safetensors")


def _read_card(path: Path) -> dict:
    """The JSON beside the weights, its own fields checked."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: it says what the network is. Copy it along with the weights")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}). Copy it again from its source") from error
    wanted = {"format": int, "model": dict, "classes": int, "fingerprint": str}
    if not isinstance(card, dict) or any(not isinstance(card.get(key), kind) for key, kind in wanted.items()):
        raise CheckpointError(f"expected a checkpoint's JSON with the fields {', '.join(wanted)}, got {path} without")
    if card["format"] != FORMAT:
        raise CheckpointError(f"expected format {FORMAT}, got format {card['format']} in {path}. Upgrade dpm-edge")
    if card["classes"] < 0:
        raise CheckpointError(f"expected 0 classes or more in {path}, got {card['classes']}")
    return card
