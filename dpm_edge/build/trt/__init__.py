"""TensorRT and TensorRT for RTX: from a typed ONNX graph to a plan, on the machine that is to run it.

One code path for TensorRT 10.3 to 11.x: networks are strongly typed, so precisions are in the graph
(`low_precision`, `quantise`), never in flags.
"""

from dpm_edge.build.trt.builder import WrittenPlan, write_plan
from dpm_edge.build.trt.options import PlanOptions
from dpm_edge.runtime.gpu.library import load_library

__all__ = ["PlanOptions", "WrittenPlan", "load_library", "write_plan"]
