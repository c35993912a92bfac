"""The text format in which Prometheus reads numbers (version 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def family(name: str, kind: str, help: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> str:
    """One metric, named dpm_edge_ and `name`, with its samples of (labels, value); nothing where there is none."""
    lines = [f"{_sample(name, labels)} {value:.10g}\n" for labels, value in samples]
    return _head(name, kind, help) + "".join(lines) if lines else ""


def histogram(
    name: str,
    help: str,
    ends: Sequence[float],
    samples: Iterable[tuple[Mapping[str, str], Sequence[int], float]],
) -> str:
    """A histogram, named dpm_edge_ and `name`.

    Args:
        name, help: as of `family`.
        ends: upper ends of the buckets, rising; the last bucket has none.
        samples: (labels, how many fell into each bucket, their sum).
    """
    lines = []
    for labels, counts, total in samples:
        below = 0
        for end, count in zip([*(f"{one:g}" for one in ends), "+Inf"], counts, strict=True):
            below += count
            lines.append(f"{_sample(name + '_bucket', {**labels, 'le': end})} {below}\n")
        lines.append(f"{_sample(name + '_sum', labels)} {total:.10g}\n{_sample(name + '_count', labels)} {below}\n")
    return _head(name, "histogram", help) + "".join(lines) if lines else ""


def _sample(name: str, labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"dpm_edge_{name}{{{pairs}}}"


def _head(name: str, kind: str, help: str) -> str:
    return f"# HELP dpm_edge_{name} {help}\n# TYPE dpm_edge_{name} {kind}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
