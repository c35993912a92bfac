"""One table of a TOML file: values by kind, and every problem reported with its place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from dpm_edge.errors import GalleryError, nearest
from dpm_edge.gallery.times import duration
from dpm_edge.watch.toml_lines import Place


class Problems(Protocol):
    """Where problems go, and where texts get their environment variables."""

    def problem(self, place: Place, message: str) -> None:
        """Note a problem."""

    def expand(self, text: str, place: Place) -> str:
        """Put environment variables in."""


class CheckedTable:
    """One table of a file: gives its values by kind, and knows which were asked for."""

    def __init__(self, problems: Problems, place: Place, values: Any) -> None:
        """The table at `place`, whatever stands there."""
        self._problems, self.place = problems, place
        if not isinstance(values, dict):
            problems.problem(place, f"expected a table, got {values!r:.60}. Write [{dotted(place)}] above its keys")
            values = {}
        self.values: dict[str, Any] = values
        self._known: set[str] = set()

    def problem(self, key: str | None, message: str) -> None:
        """Report a problem with one key, or with the table."""
        self._problems.problem(self.place if key is None else (*self.place, key), message)

    def get(self, key: str, kinds: tuple[type, ...], what: str, default: Any = None) -> Any:
        """The value of a key that is of one of `kinds`; `default` where it is missing or wrong."""
        self._known.add(key)
        value = self.values.get(key, default)
        if key not in self.values:
            return default
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            self.problem(key, f"expected {what} for {key}, got {value!r:.60}")
            return default
        return self._problems.expand(value, (*self.place, key)) if isinstance(value, str) else value

    def text(self, key: str, default: Any = None, *, choices: Iterable[str] | None = None) -> Any:
        """A text, one of `choices` where they are given."""
        value = self.get(key, (str,), "text", default)
        if choices is not None and value is not None and value not in choices:
            self.problem(key, f"expected {key} of those known, got {value!r}.{nearest(str(value), choices)}")
            return default
        return value

    def required(self, *keys: str) -> bool:
        """Report each key that is missing; whether none is."""
        missing = [key for key in keys if key not in self.values]
        for key in missing:
            self.problem(None, f"expected {key} in {dotted(self.place)}, got none. Add {key} = …")
        return not missing

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        return self.get(key, (bool,), "true or false", default)

    def number(self, key: str, default: float, low: float, high: float, *, whole: bool = False) -> Any:
        """A number in low..high."""
        value = self.get(key, (int,) if whole else (int, float), "a whole number" if whole else "a number", default)
        if not low <= value <= high:
            self.problem(key, f"expected {key} in {low:g}..{high:g}, got {value!r}")
            return default
        return value

    def number_or_word(self, key: str, word: str, low: int, high: int) -> int | None:
        """A whole number in low..high; None where the word stands there or nothing does."""
        value = self.get(key, (int, str), f'a whole number or "{word}"', word)
        if value != word and not (isinstance(value, int) and low <= value <= high):
            self.problem(key, f'expected {key} in {low}..{high} or "{word}", got {value!r:.60}')
        return value if isinstance(value, int) and low <= value <= high else None

    def seconds(self, key: str, default: float | None = None) -> Any:
        """A length of time in seconds."""
        value = self.get(key, (int, float, str), 'seconds or text like "4min"', None)
        if value is None:
            return default
        try:
            return duration(value, key)
        except GalleryError as error:
            self.problem(key, str(error))
            return default

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; a single text is a list of one."""
        value = self.get(key, (list, str), "a list of texts", [])
        value = [value] if isinstance(value, str) else value
        if not all(isinstance(one, str) for one in value):
            self.problem(key, f"expected a list of texts for {key}, got {value!r:.60}")
            return ()
        return tuple(value)

    def end(self) -> None:
        """Complain about keys that nobody asked for."""
        for key in self.values:
            if key not in self._known:
                self.problem(key, f"expected a key of {dotted(self.place)}, got {key!r}.{nearest(key, self._known)}")


def dotted(place: Place) -> str:
    """A place in a message: "rules 2", "cameras.door", "the file"."""
    if not place:
        return "the file"
    if isinstance(place[-1], int):
        return f"[[{place[0]}]] number {place[-1] + 1}"
    return ".".join(str(part) for part in place)
