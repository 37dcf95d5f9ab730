"""Means over bins that do not divide a map, in operators that a graph has."""

import contextlib
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@contextlib.contextmanager
def as_products(model: nn.Module) -> Iterator[None]:
    """Within it, adaptive mean pooling is computed by matrix products where its bins
    overlap, which ONNX cannot: those of PSPNet, of a map of known size."""
    pools = [m for m in model.modules() if isinstance(m, nn.AdaptiveAvgPool2d)]
    for pool in pools:
        pool.forward = partial(_pooled, pool)
    try:
        yield
    finally:
        for pool in pools:
            del pool.forward


def _pooled(pool: nn.AdaptiveAvgPool2d, x: Tensor) -> Tensor:
    wanted = pool.output_size
    bins = wanted if isinstance(wanted, (list, tuple)) else (wanted, wanted)
    if all(b in (1, None) for b in bins):
        return F.adaptive_avg_pool2d(x, wanted)
    sizes = [int(n) for n in x.shape[2:]]
    if all(b is None or n % b == 0 for n, b in zip(sizes, bins, strict=True)):
        return F.adaptive_avg_pool2d(x, wanted)
    rows, columns = (means(n, b or n).to(x) for n, b in zip(sizes, bins, strict=True))
    return rows @ x @ columns.t()


def means(size: int, bins: int) -> Tensor:
    """(bins, size): row i gives the mean from ⌊i · size / bins⌋ to, and without,
    ⌈(i + 1) · size / bins⌉."""
    at, i = np.arange(size), np.arange(bins)[:, None]
    inside = (at >= i * size // bins) & (at < -(-(i + 1) * size // bins))
    return torch.from_numpy(inside / inside.sum(axis=1, keepdims=True)).float()
