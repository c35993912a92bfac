"""`python -m dpm_edge.kernels`: see aot.py."""

from dpm_edge.kernels.aot import main

if __name__ == "__main__":
    raise SystemExit(main())
