"""The runtime: an engine directory in, embeddings out. Needs numpy, OpenCV and one engine library; never torch."""

from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.runtime.engine import Engine

__all__ = ["Embeddings", "Engine"]
