"""To which level each weight is rounded, learned from what its layer should give."""

from collections.abc import Sequence
from itertools import permutations

import torch
from torch import Tensor

from mmmpq.post_training.rows import Gram

SWEEPS = 4
BLOCK = 64  # inputs after which the residuals of all others are brought up to date
# Of the mean variance of an input, what every input has more: so that few samples do
# not decide more than they know. The latter times inputs / samples, the least first.
RIDGE, PER_SAMPLE = 0.01, (0.1, 0.5, 2.5, 12.5)


@torch.no_grad()
def learn_rounding(
    weight: Tensor,
    step: Tensor,
    zero: Tensor,
    levels: tuple[int, int],
    gram: Gram,
    per_sample: float = PER_SAMPLE[0],
    sweeps: int = SWEEPS,
) -> Tensor:
    """Weights on the grid with which a layer gives what it should.

    With the inputs x̂ of the quantized net so far and the outputs y of the float one,
    both less their means, which the bias takes (:func:`bias_of`), it minimises over
    the levels q of each output channel::

        E ‖ŵ x̂ - y‖² + ρ ‖ŵ - w‖²,   ŵ = s (q - z),   qmin ≤ q ≤ qmax

    The weight of one input after the other takes the level that is best with the others
    as they are, from the nearest on, in several sweeps: the error never rises. ρ is a
    share of the mean variance of an input, 0.01 + per_sample · inputs / samples, the
    per_sample of each layer from held-out images (:func:`held_out`).

    Source: the objective is that of Up or Down? Adaptive Rounding for Post-Training
    Quantization, 2020, arXiv 2004.10568; cyclic coordinate descent in place of its
    relaxed gradient descent is that of QuantEase: Optimization-based Quantization for
    Language Models, 2023, arXiv 2309.01885. ρ is ours.

    Args:
        weight: (C, ...).
        step, zero: s and z, broadcastable against ``weight``.
        levels: qmin and qmax.
        gram: What is known of the layer.
        per_sample: Of ρ.
        sweeps: Over all inputs.

    Returns:
        As ``weight``.
    """
    d = gram.xx.shape[1]
    w, s, z = (
        grouped(t.expand_as(weight), gram).contiguous() for t in (weight, step, zero)
    )
    xx, xy = _ridged(w, gram, per_sample)
    curvature = xx.diagonal(dim1=1, dim2=2)
    q = (w / s + z).round().clamp(*levels)
    residual = xx @ ((q - z) * s) - xy  # half of the gradient
    for _ in range(sweeps):
        moved = False
        for start in range(0, d, BLOCK):
            rows = slice(start, start + BLOCK)
            before = q[:, rows].clone()
            own = residual[:, rows].clone()
            for i in range(start, min(start + BLOCK, d)):
                best = q[:, i] - own[:, i - start] / (curvature[:, i, None] * s[:, i])
                best = best.round_().clamp_(*levels)
                change = (best - q[:, i]) * s[:, i]
                q[:, i] = best
                own += xx[:, rows, i, None] * change[:, None]
            change = (q[:, rows] - before) * s[:, rows]
            if change.any():
                residual += xx[:, :, rows] @ change
                moved = True
        if not moved:
            break
    learned = (q - z) * s
    return learned.transpose(1, 2).reshape(weight.shape).to(weight.dtype)


@torch.no_grad()
def refitted(weight: Tensor, gram: Gram, per_sample: float) -> Tensor:
    """The minimum of what :func:`learn_rounding` minimises, where weights are free: how
    far a layer makes up for the errors of its inputs."""
    w = grouped(weight, gram)
    found = torch.linalg.solve(*_ridged(w, gram, per_sample))
    return found.transpose(1, 2).reshape(weight.shape).to(weight.dtype)


def _ridged(w: Tensor, gram: Gram, per_sample: float) -> tuple[Tensor, Tensor]:
    """Second moments with ρ: of inputs (G, d, d), and with the outputs (G, d, C/G)."""
    d = gram.xx.shape[1]
    share = RIDGE + per_sample * d / gram.rows
    variances = gram.xx.diagonal(dim1=1, dim2=2)
    ridge = (share * variances.mean(1)).clamp_min(1e-12)[:, None]
    xx = gram.xx + torch.diag_embed(ridge.expand(-1, d))
    return xx, gram.xy + ridge[..., None] * w


def held_out(
    weight: Tensor,
    step: Tensor,
    zero: Tensor,
    levels: tuple[int, int],
    folds: Sequence[Gram],
) -> float:
    """Which ``per_sample`` of 0.1, 0.5, 2.5, 12.5: learned from each fold alone, it
    leaves the least error on the others. Of one fold: 0.1.

    Neighbouring positions of an image say much the same, so that samples are fewer than
    they seem; by how much differs from layer to layer, and images held out tell it.

    Args:
        weight, step, zero, levels: As of :func:`learn_rounding`.
        folds: Of different images.
    """
    if len(folds) < 2:
        return PER_SAMPLE[0]

    def left(per_sample: float) -> float:
        error = 0.0
        for seen, other in permutations(folds, 2):
            found = learn_rounding(weight, step, zero, levels, seen, per_sample)
            error += other.rows * float(error_of(grouped(found, other), other).sum())
        return error

    return min(PER_SAMPLE, key=left)


def error_of(weight: Tensor, gram: Gram) -> Tensor:
    """E (y - ŵ x̂)² of every output channel (G, C/G), means left out.

    Args:
        weight: (G, d, C/G).
    """
    quadratic = (weight * (gram.xx @ weight - 2 * gram.xy)).sum(1)
    return (quadratic + gram.yy).clamp_min(0)


def bias_of(weight: Tensor, gram: Gram) -> Tensor:
    """The bias (C,) with which the outputs have the mean that they should have."""
    return (gram.y - gram.x @ grouped(weight, gram)).reshape(-1).to(weight.dtype)


def grouped(weight: Tensor, gram: Gram) -> Tensor:
    """A weight as (G, d, C/G)."""
    groups, d = gram.xx.shape[:2]
    return weight.detach().float().reshape(groups, -1, d).transpose(1, 2)
