"""Ranges of quantizers from data: least squares, and Scale-Clip."""

import torch
from torch import Tensor

from mmmpq.quantizers.functional import Levels


def subsample(x: Tensor, most: int) -> Tensor:
    """About ``most`` values of ``x`` at even distances, of each row: (rows, values).

    Args:
        x: (rows, values).
    """
    return x[:, :: max(1, x.shape[1] // most)]


def nonzero_rows(weight: Tensor, rows: int) -> Tensor:
    """A weight as (rows, values), with a spread in place of each row of zeros.

    A layer that starts at zero will not stay there, and a range fitted to zeros would
    clip, and so stop, whatever it learns. The spread is that of torch's own start of a
    layer, ±1 / sqrt(fan_in).

    Args:
        weight: (C_out, ...).
        rows: 1 or C_out.
    """
    bound = max(1, weight[0].numel()) ** -0.5
    weight = weight.reshape(rows, -1)
    spread = torch.linspace(-bound, bound, weight.shape[1], device=weight.device)
    return torch.where(weight.any(dim=1, keepdim=True), weight, spread)


def least_squares_range(x: Tensor, levels: Levels, grid: int = 60) -> Tensor:
    """The clip a of each row that minimises ‖x - Q(x)‖², among fractions of max|x|.

    Args:
        x: (rows, values), a sample.
        levels: (qmin, qmax) of the quantizer, with step a / qmax.

    Returns:
        Ranges (rows,), positive.
    """
    top = x.abs().amax(dim=1).clamp_min(1e-8)
    if levels is None:
        return top
    best = torch.full_like(top, float('inf'))
    found = top.clone()
    for k in range(1, grid + 1):
        a = top * (k / grid)
        step = (a / levels[1])[:, None]
        error = ((x / step).clamp_(*levels).round_() * step - x).square().mean(dim=1)
        better = error < best
        best = torch.where(better, error, best)
        found = torch.where(better, a, found)
    return found


def scale_clip_range(x: Tensor, k: float = 2.0) -> Tensor:
    """T = k · mean|x| of the whole tensor, the clip of Scale-Clip.

    A uniform distribution on ±T has mean|x| = T / 2, so with k = 2 clipping at T again
    and again drives weights towards it.

    Source: Low-bit Quantization Needs Good Distribution, 2019, arXiv 1908.01477.
    """
    return x.detach().abs().mean() * k
