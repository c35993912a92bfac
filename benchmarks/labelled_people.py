"""The labelled people that a gallery benchmark asks about: the samples that ship, or a folder and a model of yours."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from importlib.resources import as_file
from pathlib import Path

from dpm_edge import Embeddings
from dpm_edge.cli.embedder import open_embedder
from dpm_edge.demo.default_engine import open_engine
from dpm_edge.demo.samples import FOLDER, read_samples
from dpm_edge.market import LabelledFolder, query_and_gallery
from dpm_edge.runtime.folder import embed_files

SAMPLES = "the sample people that ship"


def arguments(doc: str | None, results: str) -> argparse.Namespace:
    """--data, --engine, --name and -o; `results` is the file's name below benchmarks/results."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--name", default=SAMPLES)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results" / results)
    return parser.parse_args()


def embedded(data: Path | None, engine: Path | None) -> tuple[Embeddings, Embeddings, LabelledFolder, LabelledFolder]:
    """Embeddings of query and gallery, and their labels. None: the samples, the shipped model."""
    with ExitStack() as stack:
        if data is None:
            people = read_samples(Path(stack.enter_context(as_file(FOLDER))))
            query, gallery = people.query, people.gallery
        else:
            query, gallery = query_and_gallery(data)
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        opened = (
            open_engine(work, None, quiet=True) if engine is None else open_embedder(engine, device="CPU", threads=None)
        )
        embedder = stack.enter_context(opened)
        return embed_files(embedder, query.paths), embed_files(embedder, gallery.paths), query, gallery
