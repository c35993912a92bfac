"""The build room: a checkpoint or a portable ONNX in, a verified engine directory out."""

from dpm_edge.errors import MissingLibrary

try:
    import onnx  # noqa: F401 (everything here works on ONNX graphs)
except ImportError as error:
    raise MissingLibrary("onnx", "building an engine", "pip install 'dpm-edge[engines]'") from error

from dpm_edge.build.pipeline import build
from dpm_edge.build.trt import PlanOptions
from dpm_edge.build.verify import AccuracyBudget

__all__ = ["AccuracyBudget", "PlanOptions", "build"]
