"""Engines for other servers: a model repository of the Triton Inference Server, configurations of DeepStream."""
