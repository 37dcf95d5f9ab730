"""Fake quantization compiled: for CPUs, and for GPUs that Triton knows."""
