"""The text format in which Prometheus reads numbers (version 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def family(name: str, kind: str, help: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> str:
    """One metric, named dpm_edge_ and `name`, with its samples of (labels, value); nothing where there is none."""
    lines = [f"{_sample(name, labels)} {value:.10g}\n" for labels, value in samples]
    return _head(name, kind, help) + "".join(lines) if lines else ""


def _sample(name: str, labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
    return f"dpm_edge_{name}{{{pairs}}}"


def _head(name: str, kind: str, help: str) -> str:
    return f"# HELP dpm_edge_{name} {help}\n# TYPE dpm_edge_{name} {kind}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
