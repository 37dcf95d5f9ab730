"""Ranges of quantizers from data: least squares, and Scale-Clip."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from mmmpq.quantizers.functional import Levels

# Factors of a range that a fit tries: down to 1/1024 of the largest value, by fourths
# of an octave, and then by small steps about the best.
COARSE = [2 ** (-k / 4) for k in range(41)]
FINE = [2 ** (k / 32) for k in range(-8, 9)]


def subsample(x: Tensor, most: int) -> Tensor:
    """About ``most`` values of ``x`` at even distances, of each row: (rows, values).

    The distance is odd, so that in a tensor of even sizes all columns take their turn.

    Args:
        x: (rows, values).
    """
    return x[:, :: (x.shape[1] // most) | 1]


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


def least_squares_range(x: Tensor, levels: Levels, offset: float = 0.0) -> Tensor:
    """The clip a of each row that minimises ‖x - Q(x)‖².

    Args:
        x: (rows, values), a sample.
        levels: (qmin, qmax) of the quantizer, with step a / (qmax - offset).
        offset: z of the quantizer, as of :func:`.functional.fake_quantize`.

    Returns:
        Ranges (rows,), positive.
    """
    top = x.abs().amax(dim=1).clamp_min(1e-8)
    if levels is None:
        return top
    zero = top.new_tensor(offset)

    def error(a: Tensor) -> Tensor:
        return _squared_error(x, a / (levels[1] - offset), zero, levels)

    coarse = _best(error, top, COARSE)
    return _best(lambda a: error(a.minimum(top)), coarse, FINE).minimum(top)


def least_squares_span(x: Tensor, levels: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The ends of a grid with a zero level that minimise ‖x - Q(x)‖², one by one.

    Args:
        x: (1, values), a sample of both signs.
        levels: (0, qmax) of the quantizer, with step (high - low) / qmax and the zero
            point round(-low / step).

    Returns:
        low ≤ 0 and high ≥ 0, each (1,).
    """
    low, high = x.amin(dim=1).clamp_max(0), x.amax(dim=1).clamp_min(0)
    if bool(low == high):
        return low, high + 1e-8

    def error(low: Tensor, high: Tensor) -> Tensor:
        step = ((high - low) / levels[1]).clamp_min(1e-12)
        return _squared_error(x, step, (-low / step).round(), levels)

    for factors in (COARSE, FINE, FINE):
        high = _best(lambda h, low=low: error(low, h), high, factors)
        low = _best(lambda w, high=high: error(w, high), low, factors)
    return low, high


def _squared_error(x: Tensor, step: Tensor, zero: Tensor, levels: tuple) -> Tensor:
    """Of each row (rows,), for steps and offsets of each row."""
    step, zero = step[..., None], zero[..., None]
    q = (x / step).add_(zero).clamp_(*levels).round_().sub_(zero).mul_(step)
    return q.sub_(x).square_().mean(dim=1)


def _best(
    error: Callable[[Tensor], Tensor], values: Tensor, factors: Iterable[float]
) -> Tensor:
    """``values`` (rows,), each times the factor for which its error is least."""
    least, best = torch.full_like(values, float('inf')), values
    for factor in factors:
        tried = values * factor
        errors = error(tried)
        best = torch.where(errors < least, tried, best)
        least = torch.minimum(least, errors)
    return best


def scale_clip_range(x: Tensor, k: float = 2.0) -> Tensor:
    """T = k · mean|x| of the whole tensor, the clip of Scale-Clip.

    A uniform distribution on ±T has mean|x| = T / 2, so with k = 2 clipping at T again
    and again drives weights towards it.

    Source: Low-bit Quantization Needs Good Distribution, 2019, arXiv 1908.01477.
    """
    return x.detach().abs().mean() * k
