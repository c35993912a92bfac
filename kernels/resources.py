"""What a compiled kernel costs on each GPU: registers, instructions, and how many blocks one multiprocessor holds.

Reads cubins with NVIDIA's cuobjdump and nvdisasm from the Triton wheel; needs no GPU. Sources of the numbers per
target: CUDA C++ Programming Guide, table "Technical Specifications per Compute Capability", and cuda_occupancy.h of
CUDA 13.0, against which a test checks the occupancy.
"""

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

KIB = 1024


@dataclass(frozen=True)
class Multiprocessor:
    """Limits of one streaming multiprocessor (SM)."""

    name: str
    warps: int
    """Warps resident at once."""
    blocks: int
    """Blocks resident at once."""
    shared_bytes: int
    """Shared memory of the SM."""
    shared_per_block: int
    """Most shared memory of one block, opted in; without opting in the limit is 48 KiB everywhere."""


MULTIPROCESSORS = {
    80: Multiprocessor("A100", 64, 32, 164 * KIB, 163 * KIB),
    86: Multiprocessor("RTX 30, A10", 48, 16, 100 * KIB, 99 * KIB),
    87: Multiprocessor("Jetson Orin", 48, 16, 164 * KIB, 163 * KIB),
    89: Multiprocessor("L4, L40, RTX 40", 48, 24, 100 * KIB, 99 * KIB),
    90: Multiprocessor("H100, H200", 64, 32, 228 * KIB, 227 * KIB),
    100: Multiprocessor("B200", 64, 32, 228 * KIB, 227 * KIB),
    110: Multiprocessor("Jetson Thor", 48, 24, 228 * KIB, 227 * KIB),
}

REGISTERS = 64 * KIB
"""32-bit registers of an SM, in four equal partitions."""
RESERVED_SHARED = KIB
"""Shared memory that the driver takes for every block since compute capability 8.0."""
TENSOR_COLUMNS = 512
"""Columns of tensor memory of an SM of compute capability 10 and 11."""

_MATRIX = re.compile(r"(?:UTC)?[A-Z]{1,2}G?MMA$")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", re.MULTILINE)
_LOAD_WIDTHS = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass(frozen=True)
class Usage:
    """What one entry of a cubin uses."""

    registers: int
    """Registers of a thread."""
    stack_bytes: int
    """Local memory of a thread: stack frame and spills."""
    local_instructions: int
    """Loads and stores of local memory in the machine code: spills."""
    matrix_instructions: dict[str, int]
    """Tensor-core instruction → count."""
    widest_load_bytes: int
    """Widest global load of one thread; 0 where the kernel loads nothing."""


def nvidia_tool(name: str) -> Path:
    """Path of cuobjdump, nvdisasm or ptxas in the Triton wheel. Raises FileNotFoundError naming the wheel."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise FileNotFoundError(
            f"expected {name} in Triton {triton.__version__}, got no file {path}. "
            "Reinstall it: pip install --force-reinstall triton"
        )
    return path


def usage_of(cubin: Path) -> Usage:
    """Read a cubin of one entry. Raises ValueError where NVIDIA's tools print something else than expected."""
    resources = _output("cuobjdump", "-res-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", resources)
    if not found:
        raise ValueError(f"expected registers of {cubin} from cuobjdump, got {resources[-300:]!r}. Install triton>=3.6")
    registers, stack, local = map(int, found.groups())
    instructions = Counter(_INSTRUCTION.findall(_output("nvdisasm", "-c", cubin)))
    if not instructions:
        raise ValueError(f"expected instructions of {cubin} from nvdisasm, got none. Install triton>=3.6")
    return Usage(registers, stack + local, *_facts(instructions))


def _facts(instructions: Counter[str]) -> tuple[int, dict[str, int], int]:
    local, matrix, widest = 0, Counter[str](), 0
    for mnemonic, count in instructions.items():
        base, *modifiers = mnemonic.split(".")
        if base in ("LDL", "STL"):
            local += count
        elif _MATRIX.match(base):
            matrix[base] += count
        elif base in ("LDG", "LDGSTS", "LD"):
            widest = max(widest, next((_LOAD_WIDTHS[m] for m in modifiers if m in _LOAD_WIDTHS), 4))
        elif base in ("UTMALDG", "UBLKCP"):
            widest = max(widest, 16)
    return local, dict(sorted(matrix.items())), widest


def _output(tool: str, *arguments: str | Path) -> str:
    return subprocess.run([nvidia_tool(tool), *arguments], capture_output=True, text=True, check=True).stdout


def blocks_per_multiprocessor(
    sm: int, *, warps: int, registers: int, shared_bytes: int, tensor_columns: int = 0
) -> tuple[int, str]:
    """How many blocks of `warps` warps are resident on one SM, and which limit that is."""
    limits = MULTIPROCESSORS[sm]
    registers_per_warp = _round_up(max(registers, 1) * 32, 256)
    shared = _round_up(shared_bytes + RESERVED_SHARED, 128)
    by_limit = {
        "warps": limits.warps // warps,
        "registers": REGISTERS // 4 // registers_per_warp * 4 // warps,
        "shared memory": limits.shared_bytes // shared if shared_bytes else limits.blocks,
        "blocks": limits.blocks,
    }
    if tensor_columns:
        by_limit["tensor memory"] = TENSOR_COLUMNS // tensor_columns
    limit = min(by_limit, key=lambda name: by_limit[name])
    return by_limit[limit], limit


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step
