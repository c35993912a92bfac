"""Portable ONNX files: what is written comes back; what is damaged, edited or foreign is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_engine
from onnx import TensorProto, numpy_helper

from dpm_edge.build import portable
from dpm_edge.errors import CheckpointError
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM


def edited(source: Path, target: Path, change) -> Path:
    model = onnx.load(source)
    change(model)
    onnx.save(model, target)
    return target


def set_fact(model: onnx.ModelProto, name: str, value: str) -> None:
    next(p for p in model.metadata_props if p.key == f"dpm_edge.{name}").value = value


def test_spec_and_fingerprint_travel_in_the_metadata(net: DPM, portable_path: Path) -> None:
    read = portable.read(portable_path)
    assert read.spec == net.spec
    assert read.fingerprint == checkpoint.fingerprint(net)
    assert read.data == portable_path.read_bytes()


def test_half_storage_halves_the_file_and_reads_back_as_float32(portable_path: Path, tmp_path: Path) -> None:
    full = portable.read(portable_path)
    portable.write(full.model, tmp_path / "half.onnx", full.spec, full.fingerprint, half=True)
    onnx.checker.check_model(onnx.load(tmp_path / "half.onnx"))
    half = portable.read(tmp_path / "half.onnx")
    assert len(half.data) < 0.65 * len(full.data)
    assert [n.op_type for n in half.model.graph.node] == [n.op_type for n in full.model.graph.node]
    stored = {t.name: t for t in half.model.graph.initializer}
    assert not any(t.data_type == TensorProto.FLOAT16 for t in stored.values())
    for tensor in full.model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if tensor.data_type == TensorProto.FLOAT and values.size >= 1024:
            values = values.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(numpy_helper.to_array(stored[tensor.name]), values)


def test_half_storage_refuses_what_float16_cannot_hold(portable_path: Path, tmp_path: Path) -> None:
    read = portable.read(portable_path)
    big = next(t for t in read.model.graph.initializer if t.name == "backbone.conv1.weight")
    big.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(big) * 1e9, big.name))
    with pytest.raises(CheckpointError, match=r"within float16's range, got .* in .*backbone\.conv1\.weight"):
        portable.write(read.model, tmp_path / "x.onnx", read.spec, read.fingerprint, half=True)
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("what", ["weight", "spec", "fingerprint", "node"])
def test_an_edit_is_noticed(what: str, portable_path: Path, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        if what == "weight":
            tensor = model.graph.initializer[0]
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
        elif what == "node":
            next(n for n in model.graph.node if n.op_type == "Sigmoid").op_type = "Tanh"
        elif what == "spec":
            facts = {p.key: p.value for p in model.metadata_props}
            set_fact(model, "spec", facts["dpm_edge.spec"].replace("CC0-1.0", "Apache-2.0"))
        else:
            set_fact(model, "fingerprint", "0" * 64)

    with pytest.raises(CheckpointError, match="edited or damaged"):
        portable.read(edited(portable_path, tmp_path / "edited.onnx", change))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_file_that_is_cut_short_is_refused(share: float, portable_path: Path, tmp_path: Path) -> None:
    data = portable_path.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: int(share * len(data))])
    with pytest.raises(CheckpointError, match="cut short"):
        portable.read(tmp_path / "cut.onnx")


def test_a_file_of_something_else_says_what_it_is(portable_path: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        portable.read(tmp_path / "nothing.onnx")
    with pytest.raises(
        CheckpointError,
        match=r"got another model in .*foreign\.onnx \(.*input images \(batch, 3, 64, 64\).*--family",
    ):
        portable.read(tiny_engine.write_onnx(tmp_path / "foreign.onnx"))
    (tmp_path / "pickle.onnx").write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    with pytest.raises(CheckpointError, match="expected an ONNX file"):
        portable.read(tmp_path / "pickle.onnx")
    with pytest.raises(CheckpointError, match="format 7"):
        portable.read(edited(portable_path, tmp_path / "new.onnx", lambda model: set_fact(model, "format", "7")))


def test_spec_of_another_size_is_refused(portable_path: Path, tmp_path: Path) -> None:
    read = portable.read(portable_path)
    portable.write(read.model, tmp_path / "x.onnx", read.spec.replace(width=96), read.fingerprint)
    with pytest.raises(CheckpointError, match=r"\(96,\).*by the spec 'tiny'.*\(48,\)"):
        portable.read(tmp_path / "x.onnx")


def test_operators_outside_the_standard_are_refused(portable_path: Path) -> None:
    model = portable.read(portable_path).model
    model.graph.node[3].domain = "com.microsoft"
    with pytest.raises(CheckpointError, match=r"com\.microsoft::"):
        portable.check_standard(model)
