"""Kernels run in Triton's interpreter, on any CPU; TRITON_INTERPRET=0 runs them on a GPU, or compiles them, instead.

The variable must be set before a kernel module is imported.
"""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
