"""Protobuf's text format, as far as a Triton model configuration needs it. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class Name(str):
    """The name of an enum's value, which is written without quotes."""


def to_text(message: Mapping[str, Any]) -> str:
    """A message as protobuf's text format.

    Args:
        message: field → str, bool, int, float, `Name`, a message, or a list of these for a repeated field. A protobuf
            map is a list of messages {"key": …, "value": …}.

    Raises:
        TypeError: a value of another type.
    """
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Mapping[str, Any], indent: str) -> Iterator[str]:
    for field, value in message.items():
        values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        for one in values:
            if isinstance(one, Mapping):
                yield f"{indent}{field} {{"
                yield from _lines(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{field}: {_scalar(one)}"


def _scalar(value: object) -> str:
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    raise TypeError(f"expected str, bool, int, float, Name or a message, got {value!r} ({type(value).__name__})")
