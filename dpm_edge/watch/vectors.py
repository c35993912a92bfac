"""What a track looks like, as JSON, for outputs that ask for it: somebody else can then compare it."""

from __future__ import annotations

import base64
from typing import Any

from dpm_edge.runtime.embeddings import Embeddings


def vector_json(row: Embeddings) -> dict[str, Any]:
    """One row of embeddings as JSON types.

    Returns:
        feature (base64 of D float32, little endian, L2-normalised), dimension (D), model (its fingerprint: vectors of
        two models mean nothing to each other), centred (whether what a camera's features have in common was taken
        off; never, here) and visibility (0..1; None of a model without).
    """
    return {
        "feature": base64.b64encode(row.features[0].astype("<f4").tobytes()).decode(),
        "dimension": row.dimension,
        "model": row.fingerprint,
        "centred": False,
        "visibility": None if row.visibility is None else round(float(row.visibility[0]), 4),
    }
