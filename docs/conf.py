"""How the documentation site is made:  pip install 'dpm-edge[docs]' && sphinx-build -W -b html docs site.

The pages are the Markdown files of this folder; the API reference (api/) is read out of the docstrings.
"""

from __future__ import annotations

import re
from typing import Any

from dpm_edge import __version__

project = "dpm-edge"
author = "The dpm-edge authors"
copyright = "2026, the dpm-edge authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"
html_title = f"dpm-edge {release}"
exclude_patterns = ["site"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = [
    "myst.xref_missing",
    "misc.highlighting_failure",
]  # links out of docs/: tests/test_docs_site.py checks them

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_mock_imports = ["triton", "tensorrt", "cuda", "pycuda"]  # the reference is made without a GPU's libraries
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def as_restructured_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn Markdown's single back-ticks into the two that Sphinx wants; of a module keep the first paragraph."""
    if what == "module" and "" in lines:
        del lines[lines.index("") :]
    lines[:] = [re.sub(r"(?<![`:\w])`([^`\n]+)`(?!`)", r"``\1``", line).replace("|", "\\|") for line in lines]


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
