"""The runtime as a model of the Triton Inference Server's python backend; an exported model.py imports it from here.

Runs inside Triton, whose python backend brings `triton_python_backend_utils`.
B pictures of a request · D feature dimensions
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DpmError, ImageError
from dpm_edge.images import decode_image
from dpm_edge.runtime import Embeddings, Engine

INPUT = "crop"
OUTPUTS = ("feature", "mask", "visibility")
ENGINE = "engine"
"""The engine directory beside model.py."""


class TritonPythonModel:
    """Encoded pictures in, features, masks and visibility out, by `Engine.embed` on all requests of a batch at once."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine that lies beside model.py; its golden crop is the warm-up.

        Raises:
            DpmError: whatever `Engine.load` refuses; Triton shows the message and does not serve the model.
        """
        parameters = json.loads(args["model_config"])["parameters"]
        threads = int(parameters["threads"]["string_value"])
        folder = Path(args["model_repository"]) / args["model_version"] / ENGINE
        self._engine = Engine.load(folder, threads=threads or None)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request. A picture that cannot be read fails its own request and no other."""
        import triton_python_backend_utils as triton

        read = [_read(triton.get_input_tensor_by_name(request, INPUT).as_numpy()) for request in requests]
        good = [pictures for pictures in read if not isinstance(pictures, DpmError)]
        try:
            found = self._engine.embed([picture for pictures in good for picture in pictures])
        except DpmError as error:
            return [triton.InferenceResponse(error=triton.TritonError(str(error))) for _ in requests]
        responses, start = [], 0
        for pictures in read:
            if isinstance(pictures, DpmError):
                responses.append(triton.InferenceResponse(error=triton.TritonError(str(pictures))))
                continue
            rows = slice(start, start + len(pictures))
            start = rows.stop
            tensors = [triton.Tensor(name, array) for name, array in arrays(found, rows).items()]
            responses.append(triton.InferenceResponse(output_tensors=tensors))
        return responses

    def finalize(self) -> None:
        """Close the engine when Triton unloads the model."""
        self._engine.close()


def arrays(found: Embeddings, rows: slice) -> dict[str, NDArray[np.float32]]:
    """The outputs of one request: feature (B, D), mask (B, D) and visibility (B, 1), float32.

    A model without masks has no visibility.
    """
    made = {
        "feature": np.ascontiguousarray(found.features[rows]),
        "mask": np.ascontiguousarray(found.masks[rows]),
    }
    if found.visibility is not None:
        made["visibility"] = np.ascontiguousarray(found.visibility[rows, None])
    return made


def _read(encoded: NDArray[np.object_]) -> list[NDArray[np.uint8]] | ImageError:
    """The pictures of a request, (B, 1) bytes, or why one of them cannot be read."""
    try:
        return [decode_image(data, what=f"crop {row}") for row, data in enumerate(encoded.reshape(-1))]
    except ImageError as error:
        return error
