"""Engines on a GPU: backend torch from crops and frames to ids, our compiled kernels without torch, TensorRT if there.

Checks compare with the network and the metric in float64. Timings: the network alone in its CUDA graph (crops per
second of a batch, latency of one crop), then wall-clock time from a 1080p frame in the CPU's memory to embeddings and
to ids.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bench_network
import numpy as np
import timing
import torch

from dpm_edge import Embeddings, Engine, Gallery, env, metrics
from dpm_edge.env import installed
from dpm_edge.files import sha256
from dpm_edge.images import preprocess
from dpm_edge.manifest import GOLDEN, BatchRange, Manifest
from dpm_edge.model import checkpoint
from dpm_edge.spec import PRESETS, ModelSpec

Row = dict[str, Any]
TOLERANCE = {"fp16": 1e-2, "bf16": 4e-2}
FRAME = (1080, 1920, 3)


def spec_of(quick: bool) -> ModelSpec:
    """dpm-b at 256×128; dpm-t at 64×64 at toy size."""
    return PRESETS["dpm-t"].replace(height=64, width_px=64) if quick else PRESETS["dpm-b"]


def picture(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """A smooth coloured picture, so that resizing it is not all noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (shape[0] // 30, shape[1] // 30, 3), np.uint8)
    return np.ascontiguousarray(np.kron(coarse, np.ones((30, 30, 1), np.uint8)))


def people(count: int, shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """(count, 4) boxes inside a picture."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, shape[1] * 0.8, count), rng.uniform(0, shape[0] * 0.4, count)
    return np.stack([x, y, x + shape[1] * 0.1, y + shape[0] * 0.5], axis=1)


@contextmanager
def engine(spec: ModelSpec, precision: str, device: str, batch: str) -> Iterator[Engine]:
    """An open engine of a random network, in a directory as the build leaves it."""
    net = bench_network.build(spec, torch.float32, "cpu")
    crop = picture(9, (120, 60, 3))
    with torch.no_grad():
        feature, mask = net(torch.from_numpy(preprocess([crop], spec.preprocessing)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint.save(net, folder / "model")
        np.savez(folder / GOLDEN, crop=crop, feature=feature[0].numpy(), mask=mask[0].numpy())
        Manifest(
            spec=spec,
            fingerprint=checkpoint.fingerprint(net),
            backend="torch",
            precision=precision,
            batch=BatchRange.parse(batch),
            engine="model.safetensors",
            files={path.name: sha256(path) for path in sorted(folder.iterdir())},
            device="GPU" if device == "cuda" else "CPU",
            libraries=env.versions(),
            verification={"golden_cosine": 0.99},
        ).write(folder)
        with Engine.load(folder) as opened:
            yield opened


def row_of(name: str, dtype: str, shape: Any, came: np.ndarray, wanted: np.ndarray, tolerance: float) -> Row:
    """A check: the norm of the difference over the norm of what is wanted."""
    error = float(np.linalg.norm(came.astype(np.float64) - wanted) / np.linalg.norm(wanted))
    return {
        "name": name, "dtype": dtype, "shape": shape, "error": error, "tolerance": tolerance,
        "ok": bool(np.isfinite(came).all()) and error < tolerance,
    }  # fmt: skip


def check(device: str, quick: bool) -> list[Row]:
    """Crops, frames, frames on the GPU behind a slow stream, tickets and searches, against float64."""
    spec, rows = spec_of(quick), []
    shape = (90, 120, 3) if quick else FRAME
    frame, boxes = picture(1, shape), people(2 if quick else 11, shape)
    crops = [frame[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] for x0, y0, x1, y1 in boxes]
    with torch.no_grad():
        exact = bench_network.build(spec, torch.float64, device)
        images = torch.from_numpy(preprocess(crops, spec.preprocessing)).to(device).double()
        feature, mask = (x.double().cpu().numpy() for x in exact(images))
    gallery = np.random.default_rng(2).standard_normal((20 if quick else 5000, spec.dimension)).astype(np.float32)
    wanted = metrics.similarity(feature, gallery.astype(np.float64), query_masks=mask)
    for precision in ("bf16",) if quick else ("fp16", "bf16"):
        with engine(spec, precision, device, "1:4:16") as opened, gallery_of(opened, gallery, device) as there:
            ways: dict[str, Callable[[], Any]] = {
                "crops": lambda e=opened: e.embed(crops),
                "frame": lambda e=opened: e.embed(frame, boxes),
                "ticket": lambda e=opened: [e.submit(frame, boxes) for _ in range(2)][-1].result(600),
            }
            if device == "cuda":
                ways["frame on the GPU, behind a slow stream"] = lambda e=opened: late_frame(e, frame, boxes)
            for way, call in ways.items():
                got = call()
                tolerance = TOLERANCE[precision]
                rows.append(row_of(f"engine {way}: feature", precision, [len(boxes)], got.features, feature, tolerance))
                rows.append(row_of(f"engine {way}: mask", precision, [len(boxes)], got.masks, mask, tolerance))
            found = opened.search(frame, boxes, there, 3)[1]
            best = -np.sort(-wanted, axis=1)[:, :3]
            rows.append(row_of("engine frame to ids", precision, [len(boxes)], found.similarity, best, 4e-2))
    return rows + (compiled_kernels(frame, boxes, mask, feature, gallery) if device == "cuda" else [])


def gallery_of(opened: Engine, features: np.ndarray, device: str) -> Gallery:
    """A gallery whose rows lie where the engine runs; on a CPU in its memory."""
    count = len(features)
    made = Gallery.for_engine(opened, dtype="float16", device=device)
    rows = Embeddings(
        features=features, masks=np.ones_like(features), visibility=np.ones(count, np.float32), rows=np.arange(count),
        fingerprint=opened.fingerprint,
    )  # fmt: skip
    made.add(rows, people=np.arange(count))
    return made


def late_frame(opened: Engine, frame: np.ndarray, boxes: np.ndarray) -> Any:
    """Embed a frame that a side stream writes some milliseconds after the call."""
    side, there = torch.cuda.Stream(), torch.zeros(frame.shape, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        there.copy_(torch.from_numpy(frame).pin_memory(), non_blocking=True)
    return opened.embed(there, boxes, stream=side)


def compiled_kernels(
    frame: np.ndarray, boxes: np.ndarray, mask: np.ndarray, feature: np.ndarray, gallery: np.ndarray
) -> list[Row]:
    """Crops and top-k by ahead-of-time cubins through cuda-bindings, in the context that torch made."""
    if not installed("cuda.bindings"):
        return [{"name": "engine: cuda-bindings is not installed, compiled kernels were not run", "ok": True}]
    from dpm_edge.runtime.gpu.arrays import device_frame
    from dpm_edge.runtime.gpu.device import Device
    from dpm_edge.runtime.gpu.gallery_rows import GalleryRows
    from dpm_edge.runtime.gpu.kernels import VARIABLE, CompiledKernels

    pre = PRESETS["dpm-b"].preprocessing
    on_gpu = {
        "frame": torch.from_numpy(frame), "boxes": torch.from_numpy(boxes.astype(np.float32)),
        "affine": torch.tensor(pre.affine()), "feature": torch.from_numpy(feature.astype(np.float32)),
        "mask": torch.from_numpy(mask.astype(np.float32)),
    }  # fmt: skip
    there = {name: tensor.cuda() for name, tensor in on_gpu.items()}
    n, k, stream = len(boxes), 40, torch.cuda.Stream()
    crops = torch.full((n, 3, pre.height, pre.width), float("nan"), device="cuda")
    gpu = Device()
    with tempfile.TemporaryDirectory() as scratch:
        arch = gpu.compute_capability.replace(".", "")
        ops = ["--op", "crop_resize_normalize", "masked_distance"]
        command = [sys.executable, "-m", "dpm_edge.kernels", "--arch", arch, *ops, "--jobs", "8", "--out", scratch]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "0"}
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        kernels = CompiledKernels(Path(scratch), gpu)
        os.environ[VARIABLE] = scratch
        held = GalleryRows(0)
        held.follow(metrics.normalise(gallery.astype(np.float64)).astype(np.float16), None)
        torch.cuda.synchronize()
        with gpu:
            seen = device_frame(there["frame"], gpu, stream.cuda_stream)
            kernels.crop(
                seen, there["boxes"].data_ptr(), n, there["affine"].data_ptr(), (pre.height, pre.width),
                crops.data_ptr(), stream.cuda_stream,
            )  # fmt: skip
        held.enqueue(there["feature"], there["mask"], k, None, stream.cuda_stream)
        stream.synchronize()
        named, scores = held.collect()
        held.close()
        del os.environ[VARIABLE]
        kernels.close()
    gpu.close()
    parts = [frame[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] for x0, y0, x1, y1 in boxes]
    similarity = metrics.similarity(feature, gallery.astype(np.float64), query_masks=mask)
    order = np.argsort(-similarity, axis=1)[:, :k]
    best = np.take_along_axis(similarity, order, 1)
    return [
        row_of("compiled crop kernel", "fp32", [n], crops.cpu().numpy(), preprocess(parts, pre), 1e-2),
        row_of("compiled top-k", "fp16", [n], scores, best, 2e-3),
        row_of("compiled top-k: its rows", "fp16", [n], np.take_along_axis(similarity, named, 1), best, 2e-3),
    ]


def timings(device: str, quick: bool) -> list[Row]:
    """Milliseconds a call; `per_second` is crops."""
    spec = spec_of(quick)
    sizes = (1,) if quick else (1, 8, 64, 256)
    precisions = ("bf16",) if quick else ("fp16", "bf16")
    rows = [row for precision in precisions for row in network_alone(spec, precision, device, sizes, "in its graph")]
    if not quick:
        os.environ["DPM_EDGE_TORCH_COMPILE"] = "1"
        try:
            rows += network_alone(spec, "fp16", device, (64,), "compiled, in its graph", "64:64:64")
        finally:
            del os.environ["DPM_EDGE_TORCH_COMPILE"]
    with engine(spec, precisions[0], device, f"1:{sizes[-1]}:{sizes[-1]}") as opened:
        rows += end_to_end(opened, quick)
    return rows + [tensorrt_here(backend) for backend in ("tensorrt", "tensorrt_rtx")]


def network_alone(
    spec: ModelSpec, precision: str, device: str, sizes: tuple[int, ...], way: str, batch: str = ""
) -> list[Row]:
    """The network on crops that lie on the device already, as the engine's lane runs it."""
    rows, pre = [], spec.preprocessing
    with engine(spec, precision, device, batch or f"1:{sizes[-1]}:{sizes[-1]}") as opened:
        backend: Any = opened._backend
        for size in sizes:
            with backend._take(None) as lane:
                images = (torch.rand(size, 3, pre.height, pre.width, device=device) * 2 - 1).to(lane._dtype)
                ms = timing.median_ms(lambda x=images, lane=lane: lane.execute(x), cold_l2=False)
            rows.append(
                {
                    "name": f"engine {spec.name} torch: network {way}", "dtype": precision, "shape": [size], "ms": ms,
                    "per_second": round(size / ms * 1e3, 1), "flops": bench_network.forward_flops(spec) * size,
                }
            )  # fmt: skip
    return rows


def end_to_end(opened: Engine, quick: bool) -> list[Row]:
    """Wall-clock time from a frame in the CPU's memory; `submit` keeps both lanes busy."""
    shape = (90, 120, 3) if quick else FRAME
    frame, rows = picture(1, shape), []
    count = 20 if quick else 100_000
    gallery = np.random.default_rng(2).standard_normal((count, opened.dimension)).astype(np.float32)
    device = "cpu" if quick else "cuda"
    with gallery_of(opened, gallery, device) as there:
        for size in (1,) if quick else (1, 32, 64):
            boxes = people(size, shape)
            crops = [frame[: shape[0] // 2, : shape[1] // 10]] * size
            ways: dict[str, Callable[[], Any]] = {
                "crops on the CPU to embeddings": lambda c=crops: opened.embed(c),
                "frame to embeddings": lambda b=boxes: opened.embed(frame, b),
                f"frame to ids, {count} rows": lambda b=boxes: opened.search(frame, b, there, 1),
            }
            for way, call in ways.items():
                rows.append(wall(f"engine torch: {way}", size, call, 1 if quick else 30))
            rounds = 2 if quick else 40

            def pipelined(b: np.ndarray = boxes, rounds: int = rounds) -> None:
                for ticket in [opened.submit(frame, b) for _ in range(rounds)]:
                    ticket.result(120)

            row = wall("engine torch: frame to embeddings, submitted ahead", size, pipelined, 1 if quick else 3)
            row |= {"ms": row["ms"] / rounds, "per_second": round(row["per_second"] * rounds, 1)}
            rows.append(row)
    return rows


def wall(name: str, size: int, call: Callable[[], Any], runs: int) -> Row:
    """Median wall-clock milliseconds."""
    call()
    spans = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        spans.append((time.perf_counter() - start) * 1e3)
    ms = statistics.median(spans)
    return {"name": name, "dtype": "", "shape": [size], "ms": ms, "per_second": round(size / ms * 1e3, 1)}


def tensorrt_here(module: str) -> Row:
    """Whether a TensorRT could build and run on this machine: its builder is asked once."""
    if not installed(module):
        return {"name": f"engine {module}: not installed here", "shape": []}
    from importlib import import_module

    trt = import_module(module)
    try:
        builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
        network = builder.create_network(0 if module == "tensorrt_rtx" else 1 << 1)
        image = network.add_input("images", trt.DataType.FLOAT, (1, 3, 8, 8))
        network.mark_output(network.add_activation(image, trt.ActivationType.RELU).get_output(0))
        plan = builder.build_serialized_network(network, builder.create_builder_config())
        opened = plan is not None and trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
        said = "builds and opens a plan" if opened else "opens no plan here"
    except (RuntimeError, TypeError) as error:
        said = f"refuses this machine ({error})"
    return {"name": f"engine {module} {trt.__version__}: {said}", "shape": []}
