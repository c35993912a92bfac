"""Runs in the environment of tritonclient: many clients send encoded pictures over HTTP and gRPC at once.

python triton_clients.py HTTP_PORT GRPC_PORT MODEL IN.npz OUT.npz     IN: one uint8 array of bytes for each picture.
OUT: for each client NUMBER the arrays NUMBER.rows, NUMBER.feature, NUMBER.mask, NUMBER.visibility, in the order sent.
python triton_clients.py config FILE                                 prints a ModelConfig as JSON.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTPUTS = ("feature", "mask", "visibility")
CLIENTS = 8
"""Of each protocol."""


def show_config(path: str) -> None:
    """Parse a config.pbtxt as Triton does; an unknown field or a wrong type raises."""
    from google.protobuf import json_format, text_format
    from tritonclient.grpc import model_config_pb2

    config = text_format.Parse(Path(path).read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    print(json_format.MessageToJson(config, preserving_proto_field_name=True))


def tensor(protocol: Any, encoded: list[bytes]) -> list[Any]:
    """The input of a request of len(encoded) rows."""
    crop = protocol.InferInput("crop", [len(encoded), 1], "BYTES")
    crop.set_data_from_numpy(np.array(encoded, np.object_)[:, None])
    return [crop]


def requests(number: int, count: int) -> list[NDArray[np.int64]]:
    """Which pictures a client sends: each once, from another one on for each client, one to three a request."""
    order = np.roll(np.arange(count), number * 5)
    return np.split(order, np.arange(1, count, 1 + number % 3))


def joined(number: int, count: int, answers: list[Any]) -> dict[str, Any]:
    """A client's answers as arrays of OUT."""
    arrays = {name: np.concatenate([answer.as_numpy(name) for answer in answers]) for name in OUTPUTS}
    arrays["rows"] = np.concatenate(requests(number, count))
    return {f"{number}.{name}": array for name, array in arrays.items()}


def over_grpc(number: int, port: str, model: str, pictures: list[bytes]) -> dict[str, Any]:
    """One client that waits for each answer; to be run on a thread."""
    import tritonclient.grpc as protocol

    with protocol.InferenceServerClient(f"127.0.0.1:{port}") as client:
        cuts = requests(number, len(pictures))
        answers = [client.infer(model, tensor(protocol, [pictures[row] for row in rows])) for rows in cuts]
    return joined(number, len(pictures), answers)


def over_http(numbers: range, port: str, model: str, pictures: list[bytes]) -> dict[str, Any]:
    """Several clients with one request under way each, in turns on one thread, since its library uses greenlets."""
    import tritonclient.http as protocol

    clients = {number: protocol.InferenceServerClient(f"127.0.0.1:{port}") for number in numbers}
    cuts = {number: requests(number, len(pictures)) for number in numbers}
    answers: dict[int, list[Any]] = {number: [] for number in numbers}
    for turn in range(max(map(len, cuts.values()))):
        sent = {
            number: clients[number].async_infer(model, tensor(protocol, [pictures[row] for row in rows[turn]]))
            for number, rows in cuts.items()
            if turn < len(rows)
        }
        for number, request in sent.items():
            answers[number].append(request.get_result())
    for client in clients.values():
        client.close()
    return {k: v for number in numbers for k, v in joined(number, len(pictures), answers[number]).items()}


def main(http: str, grpc: str, model: str, source: str, target: str) -> None:
    """All clients at once, and one picture that is none, over both protocols."""
    import tritonclient.grpc
    import tritonclient.http
    from tritonclient.utils import InferenceServerException

    with np.load(source) as stored:
        pictures = [stored[name].tobytes() for name in sorted(stored.files)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        running = [pool.submit(over_grpc, number, grpc, model, pictures) for number in range(CLIENTS)]
        out = over_http(range(CLIENTS, 2 * CLIENTS), http, model, pictures)
    for one in running:
        out.update(one.result())
    for name, protocol, port in (("http", tritonclient.http, http), ("grpc", tritonclient.grpc, grpc)):
        with protocol.InferenceServerClient(f"127.0.0.1:{port}") as client:
            try:
                client.infer(model, tensor(protocol, [pictures[0], b"no picture"]))
                out[f"{name}.refused"] = np.array("answered")
            except InferenceServerException as error:
                out[f"{name}.refused"] = np.array(str(error))
    np.savez(target, **out)


if __name__ == "__main__":
    if sys.argv[1] == "config":
        show_config(sys.argv[2])
    else:
        main(*sys.argv[1:])
