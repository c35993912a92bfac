"""Frames and streams of other CUDA libraries: torch, CuPy, pycuda, numba, cuda.core. None of them is imported.

frame (H, W, 3) uint8, pixels side by side, rows possibly padded
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from dpm_edge.errors import EngineError, ImageError
from dpm_edge.runtime.gpu.device import Device


@dataclass(frozen=True)
class DeviceFrame:
    """A frame in GPU memory."""

    address: int
    """Of its first byte."""
    height: int
    """H, pixels."""
    width: int
    """W, pixels."""
    stride: int
    """Bytes from row to row."""
    owner: Any
    """Keeps the memory alive."""
    stream: int | None = None
    """A stream whose work it may still wait for."""


@dataclass(frozen=True)
class DeviceArray:
    """A contiguous float32 array in GPU memory, for other CUDA libraries to read."""

    address: int
    shape: tuple[int, ...]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3; what is under way on the array is the reader's to wait for."""
        return {"data": (self.address, False), "shape": self.shape, "typestr": "<f4", "strides": None, "version": 3}


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _Tensor(ctypes.Structure):
    """DLTensor of DLPack's dlpack.h, whose DLManagedTensor starts with it."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("dimensions", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


def device_frame(array: Any, device: Device, stream: int) -> DeviceFrame:
    """A frame on the GPU, through DLPack or `__cuda_array_interface__`. Call inside `with device:`.

    Args:
        array: (H, W, 3) uint8.
        device: where it must lie.
        stream: handle of the stream that will read it; a DLPack producer makes it wait for its own work.

    Raises:
        ImageError: another shape, dtype, stride or GPU, or memory of another CUDA context.
    """
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        frame = _from_dlpack(array, device, stream)
    else:
        frame = _from_interface(array.__cuda_array_interface__, array)
    _check_home(frame.address, device)
    return frame


def stream_handle(stream: Any) -> int:
    """The CUstream of an int, of an object with `__cuda_stream__`, or of torch's, pycuda's or CuPy's stream.

    Raises:
        EngineError: it is none of these.
    """
    if hasattr(stream, "__cuda_stream__"):
        told = stream.__cuda_stream__
        return int((told() if callable(told) else told)[1])
    for name in ("cuda_stream", "handle", "ptr"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    if isinstance(stream, bool) or not hasattr(stream, "__int__"):
        raise EngineError(
            f"expected stream to be a CUstream as int, or a stream of torch, CuPy, pycuda or cuda.core, got a "
            f"{type(stream).__name__}"
        )
    return int(stream)


def _from_dlpack(array: Any, device: Device, stream: int) -> DeviceFrame:
    """The capsule is kept as the owner and never consumed: its own destructor gives the memory back."""
    capsule = array.__dlpack__(stream=stream)
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    tensor = _Tensor.from_address(pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[: tensor.dimensions])
    strides = tuple(tensor.strides[: tensor.dimensions]) if tensor.strides else None
    if (tensor.code, tensor.bits, tensor.lanes) != (1, 8, 1):
        raise ImageError(f"expected a frame of uint8 on the GPU, got DLPack type {tensor.code} of {tensor.bits} bits")
    if tensor.device.index != device.index:
        raise ImageError(
            f"expected a frame on GPU {device.index}, where the engine runs, got one on GPU {tensor.device.index}"
        )
    return _frame((tensor.data or 0) + tensor.offset, shape, strides, capsule, None)


def _from_interface(told: dict[str, Any], array: Any) -> DeviceFrame:
    """`__cuda_array_interface__`, version 2 or 3."""
    if told["typestr"] != "|u1":
        raise ImageError(f"expected a frame of uint8 (|u1) on the GPU, got type {told['typestr']}")
    stream = told.get("stream")
    return _frame(int(told["data"][0]), tuple(told["shape"]), told.get("strides"), array, stream)


def _frame(
    address: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, owner: Any, stream: int | None
) -> DeviceFrame:
    strides = strides or ((shape[1] * 3, 3, 1) if len(shape) == 3 else ())
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or tuple(strides[1:]) != (3, 1) or strides[0] < 3 * shape[1]:
        raise ImageError(
            f"expected a frame (H, W, 3) with pixels side by side on the GPU, got shape {shape} and strides {strides}"
        )
    return DeviceFrame(address, shape[0], shape[1], strides[0], owner, stream)


def _check_home(address: int, device: Device) -> None:
    """Refuse what is no memory of this GPU's primary context. Memory of a pool belongs to no context, and passes."""
    attribute = device.cuda.CUpointer_attribute
    status, index = device.cuda.cuPointerGetAttribute(attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address)
    if int(status) != 0 or int(index) != device.index:
        raise ImageError(
            f"expected a frame in memory of GPU {device.index}, where the engine runs, got address {address:#x}"
        )
    status, context = device.cuda.cuPointerGetAttribute(attribute.CU_POINTER_ATTRIBUTE_CONTEXT, address)
    if int(status) == 0 and int(context) not in (0, device.context):
        raise ImageError(
            "expected a frame of the GPU's primary context, got one of a context of the application's own making. Use "
            "the primary one (pycuda: import pycuda.autoprimaryctx)"
        )
