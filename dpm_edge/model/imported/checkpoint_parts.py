"""What the import of every family shares: taking tensors out of a state dictionary, and saying what did not fit.

N patch tokens · h×w grid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from dpm_edge.errors import CheckpointError
from dpm_edge.spec import Preprocessing

STRIDES = (16, 12, 11, 14, 8)
"""Patch strides in use, the most usual first."""
_PATCH = 16


@dataclass
class Parts:
    """A state dictionary of which one takes what is known; what nobody took is unknown."""

    tensors: dict[str, Tensor]
    source: str
    left: list[str] = field(default_factory=list)
    """Names that only training needs."""

    def has(self, name: str) -> bool:
        """Whether a tensor of that name is there still."""
        return name in self.tensors

    def take(self, name: str) -> Tensor:
        """One tensor, taken out.

        Raises:
            CheckpointError: there is none of that name.
        """
        if name not in self.tensors:
            raise CheckpointError(f"{self.source} does not fit the network: {name} is missing")
        return self.tensors.pop(name)

    def take_below(self, prefix: str) -> dict[str, Tensor]:
        """Every tensor below a prefix, without it, taken out."""
        found = [name for name in self.tensors if name.startswith(prefix)]
        return {name.removeprefix(prefix): self.tensors.pop(name) for name in found}

    def leave(self, prefixes: Iterable[str]) -> None:
        """Leave out what starts with any of these: training or another head needs it, the feature does not."""
        prefixes = tuple(prefixes)
        found = [name for name in self.tensors if name.startswith(prefixes)]
        for name in found:
            del self.tensors[name]
        self.left += found

    def nothing_else(self) -> None:
        """Refuse what nobody took.

        Raises:
            CheckpointError: naming up to five tensors.
        """
        if self.tensors:
            names = list(self.tensors)
            more = f"; and {len(names) - 5} more" if len(names) > 5 else ""
            unknown = "; ".join(f"{name} is unknown" for name in names[:5])
            raise CheckpointError(f"{self.source} does not fit the network: {unknown}{more}")


def grid_of(
    rows: int, sizes: list[tuple[int, int]], strides: Iterable[int] = STRIDES, *, source: str
) -> tuple[int, int, int]:
    """Height, width and patch stride whose grid has as many places as a position table, without its cls row.

    The first of `sizes`, then the first of `strides`, that fits.

    Raises:
        CheckpointError: none fits.
    """
    for height, width in sizes:
        for stride in strides:
            if ((height - _PATCH) // stride + 1) * ((width - _PATCH) // stride + 1) == rows:
                return height, width, stride
    tried = ", ".join(f"{height}x{width}" for height, width in sizes)
    raise CheckpointError(
        f"expected a position table of the input {tried} and a usual patch stride, got one of {rows} places in "
        f"{source}. Say the input's size with --input"
    )


def sized(pre: Preprocessing, size: tuple[int, int]) -> Preprocessing:
    """The preprocessing with another (height, width)."""
    return Preprocessing(
        height=size[0], width=size[1], color=pre.color, mean=pre.mean, std=pre.std, interpolation=pre.interpolation
    )


def count_blocks(tensors: dict[str, Tensor], prefix: str) -> int:
    """How many blocks there are below a prefix."""
    numbers = [name.removeprefix(prefix).partition(".")[0] for name in tensors if name.startswith(prefix)]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)
