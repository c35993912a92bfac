"""Rendered and validation pictures in one small folder, for a GPU machine that cannot be given the whole sets.

`pack` puts rendered people (WebP, quality 60; masks at half size), the validation people's own files and the stem's
first weights into a few dozen megabytes. `unpack` decodes that once, into arrays that every training maps into memory.

N pictures · H×W of the packed pictures
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from dpm_edge.layouts import read_dataset
from dpm_edge.spec import Preprocessing
from dpm_edge.train import backgrounds
from dpm_edge.train.data import Pictures
from dpm_edge.train.evaluate import occlusion_sets
from dpm_edge.train.panoramas import views
from dpm_edge.train.synthetic.layout import HIDDEN, SEEN, mask_of

WEBP_QUALITY = 60
BACKGROUNDS = 1024
"""Pieces of clutter that people are put before."""
PLACES = "places.npy"
"""File of the unpacked folder: views of real places with half of the clutter, where the pack has views."""
SHARE = 0.4
"""How much of each validation query is covered."""


def pack(
    rendered: Path,
    validation: Path,
    stem: Path,
    out: Path,
    most_megabytes: float = 50.0,
    most_files: int = 10**9,
    panoramas: Path | None = None,
) -> None:
    """Write PACK: pictures.bin + pictures.npz, validation.npz, stem.pth. People that are not complete are left out.

    With a folder of `panoramas` also places.npz: views into them, for the rows that set augment.panoramas.

    The rendered pictures end at `most_megabytes`; each validation part at `most_files` (to try the script out).
    """
    cv2.setNumThreads(1)
    out.mkdir(parents=True, exist_ok=True)
    blobs, people, cameras, masks, size = [], [], [], [], 0
    for labels in sorted((rendered / "labels").glob("*.csv")):
        for line in labels.read_text().splitlines()[1:]:
            file, person, camera, *_ = line.split(",")
            image = np.asarray(cv2.imread(str(rendered / file)))
            mask = np.asarray(cv2.imread(str(mask_of(rendered, file)), cv2.IMREAD_GRAYSCALE))
            half = cv2.resize(mask, (mask.shape[1] // 2, mask.shape[0] // 2), interpolation=cv2.INTER_NEAREST)
            blob = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])[1].tobytes()
            blobs.append(blob)
            people.append(int(person))
            cameras.append(int(camera))
            masks.append(np.packbits(np.stack([half == SEEN, half >= HIDDEN])))
            size += len(blob) + 180
        if size > most_megabytes * 1e6:
            break
    (out / "pictures.bin").write_bytes(b"".join(blobs))
    np.savez_compressed(
        out / "pictures.npz", ends=np.cumsum([len(b) for b in blobs]), people=people, cameras=cameras,
        masks=np.stack(masks), half=half.shape, shape=image.shape,
    )  # fmt: skip
    if panoramas is not None:
        seen = views(panoramas, *image.shape[:2], seed=0, count=BACKGROUNDS).permute(0, 2, 3, 1).numpy()
        codes = [cv2.imencode(".webp", v[:, :, ::-1], [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY])[1] for v in seen]
        np.savez(out / "places.npz", bytes=np.concatenate(codes), ends=np.cumsum([len(c) for c in codes]))
    found = read_dataset(validation, "market", train=False)
    parts: dict[str, Any] = {}
    for name, part in (("query", found.query), ("gallery", found.gallery)):
        part = part.take(np.arange(min(most_files, len(part))))
        files = [path.read_bytes() for path in part.paths]
        parts.update({
            f"{name}_bytes": np.frombuffer(b"".join(files), np.uint8),
            f"{name}_ends": np.cumsum([len(f) for f in files]),
            f"{name}_people": part.people, f"{name}_cameras": part.cameras,
            f"{name}_names": np.array([path.name for path in part.paths]),
        })  # fmt: skip
    np.savez(out / "validation.npz", **parts)
    tensors = torch.load(stem, map_location="cpu", weights_only=True)
    kept = {n: t.half() for n, t in tensors.items() if not n.startswith(("_conv_head", "_bn1", "_fc"))}
    torch.save(kept, out / "stem.pth")
    total = sum(f.stat().st_size for f in out.iterdir()) / 1e6
    print(f"{out}: {len(blobs)} pictures of {len(set(people))} people, {total:.1f} MB")


def decode_all(blob: bytes, ends: np.ndarray, size: tuple[int, int] | None = None) -> np.ndarray:
    """(N, 3, H, W) uint8 RGB of encoded pictures that lie one behind the other; resized to (H, W) where it is given."""
    starts = np.concatenate([[0], ends[:-1]])

    def one(k: int) -> np.ndarray:
        code = np.frombuffer(blob, np.uint8, ends[k] - starts[k], starts[k])
        image = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))
        if size is not None:
            image = np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR))
        return image[:, :, ::-1].transpose(2, 0, 1)

    cv2.setNumThreads(1)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(one, range(len(ends)))))


def unpack(folder: Path, scratch: Path) -> None:
    """Decode the pack once, into arrays that every rung maps into memory."""
    scratch.mkdir(parents=True, exist_ok=True)
    with np.load(folder / "pictures.npz") as kept:
        values = {n: kept[n] for n in kept.files}
    np.save(scratch / "pixels.npy", decode_all((folder / "pictures.bin").read_bytes(), values["ends"]))
    height, width = values["half"]
    bits = np.unpackbits(values["masks"], axis=1)[:, : 2 * height * width]
    np.save(scratch / "shares.npy", bits.reshape(-1, 2, height, width) * np.uint8(255))
    np.savez(scratch / "labels.npz", people=values["people"], cameras=values["cameras"])
    with np.load(folder / "validation.npz") as kept:
        values = {n: kept[n] for n in kept.files}
    for name in ("query", "gallery"):
        pre = Preprocessing()
        size = (pre.height, pre.width)
        np.save(scratch / f"{name}.npy", decode_all(values[f"{name}_bytes"].tobytes(), values[f"{name}_ends"], size))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        height, width = np.load(scratch / "pixels.npy", mmap_mode="r").shape[2:]
        parts = pool.map(backgrounds.bank, [height] * 32, [width] * 32, range(32), [BACKGROUNDS // 32] * 32)
        pieces = np.concatenate([part.numpy() for part in parts])
    if (folder / "places.npz").is_file():
        with np.load(folder / "places.npz") as kept:
            places = decode_all(kept["bytes"].tobytes(), kept["ends"])
        np.save(scratch / PLACES, np.concatenate([places, pieces[: BACKGROUNDS // 2]]))
    np.save(scratch / "backgrounds.npy", pieces)
    query, _ = validation(folder, scratch)
    pixels = np.load(scratch / "pixels.npy", mmap_mode="r")[::50]
    bodies = torch.from_numpy(np.ascontiguousarray(pixels))
    nobody = Pictures(bodies, torch.zeros(len(bodies)), torch.zeros(len(bodies)), [""] * len(bodies))
    occlusion_sets(query, nobody, (SHARE,), scratch / "covered.safetensors", workers=8)


def validation(folder: Path, scratch: Path) -> tuple[Pictures, Pictures]:
    """Query and gallery pictures at 256×128."""
    parts = []
    with np.load(folder / "validation.npz") as kept:
        for name in ("query", "gallery"):
            pixels = torch.from_numpy(np.load(scratch / f"{name}.npy"))
            people, cameras = (torch.from_numpy(kept[f"{name}_{of}"]) for of in ("people", "cameras"))
            parts.append(Pictures(pixels, people, cameras, kept[f"{name}_names"].tolist()))
    return parts[0], parts[1]
