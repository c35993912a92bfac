"""What engines on a GPU share: the CUDA driver, memory, streams, frames, our kernels. cuda-bindings; never torch."""
