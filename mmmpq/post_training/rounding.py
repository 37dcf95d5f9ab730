"""To which level each weight is rounded, learned from what its layer should give."""

import torch
from torch import Tensor

from mmmpq.post_training.rows import Gram

SWEEPS = 4
BLOCK = 64  # inputs after which the residuals of all others are brought up to date
# Of the mean variance of an input, what every input has more: so that few samples do
# not decide more than they know.
RIDGE, PER_SAMPLE = 0.01, 0.1


@torch.no_grad()
def learn_rounding(
    weight: Tensor,
    step: Tensor,
    zero: Tensor,
    levels: tuple[int, int],
    gram: Gram,
    sweeps: int = SWEEPS,
) -> Tensor:
    """Weights on the grid with which a layer gives what it should.

    With the inputs x̂ of the quantized net so far and the outputs y of the float one,
    both less their means, which the bias takes (:func:`bias_of`), it minimises over
    the levels q of each output channel::

        E ‖ŵ x̂ - y‖² + ρ ‖ŵ - w‖²,   ŵ = s (q - z),   qmin ≤ q ≤ qmax

    The weight of one input after the other takes the level that is best with the others
    as they are, from the nearest on, in several sweeps: the error never rises. ρ is a
    share of the mean variance of an input, 0.01 + 0.1 · inputs / samples.

    Source: the objective is that of Up or Down? Adaptive Rounding for Post-Training
    Quantization, 2020, arXiv 2004.10568; cyclic coordinate descent in place of its
    relaxed gradient descent is that of QuantEase: Optimization-based Quantization for
    Language Models, 2023, arXiv 2309.01885. ρ is ours.

    Args:
        weight: (C, ...).
        step, zero: s and z, broadcastable against ``weight``.
        levels: qmin and qmax.
        gram: What is known of the layer.
        sweeps: Over all inputs.

    Returns:
        As ``weight``.
    """
    groups, d = gram.xx.shape[:2]

    def grouped(t: Tensor) -> Tensor:  # (G, d, C/G), as Gram has it
        each = t.detach().float().expand_as(weight).reshape(groups, -1, d)
        return each.transpose(1, 2).contiguous()

    w, s, z = grouped(weight), grouped(step), grouped(zero)
    share = RIDGE + PER_SAMPLE * d / gram.rows
    variances = gram.xx.diagonal(dim1=1, dim2=2)
    ridge = (share * variances.mean(1)).clamp_min(1e-12)[:, None]
    xx = gram.xx + torch.diag_embed(ridge.expand(-1, d))
    xy = gram.xy + ridge[..., None] * w
    curvature = variances + ridge
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


def error_of(weight: Tensor, gram: Gram) -> Tensor:
    """E (y - ŵ x̂)² of every output channel (G, C/G), means left out.

    Args:
        weight: (G, d, C/G).
    """
    quadratic = (weight * (gram.xx @ weight - 2 * gram.xy)).sum(1)
    return (quadratic + gram.yy).clamp_min(0)


def bias_of(weight: Tensor, gram: Gram) -> Tensor:
    """The bias (C,) with which the outputs have the mean that they should have."""
    groups, d = gram.xx.shape[:2]
    w = weight.detach().float().reshape(groups, -1, d).transpose(1, 2)
    return (gram.y - gram.x @ w).reshape(-1).to(weight.dtype)
