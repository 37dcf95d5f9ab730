"""FracBits: bit-widths that are real numbers while they are searched."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmmpq.layers import Relaxation
from mmmpq.policy import Precision
from mmmpq.quantizers.base import constant
from mmmpq.registry import RELAXATIONS


@RELAXATIONS.register_module()
class FracBits(Relaxation):
    """A width λ of weights and one of activations, between two of the candidates'.

    With neighbouring widths b ≤ λ ≤ b' of weights, or of activations::

        λ = clip(b_max + θ, b_min, b_max),  straight-through
        p(b) = (b' - λ) / (b' - b),  p(b') = (λ - b) / (b' - b),  p(w, a) = p(w) p(a)

    so that mixing 'composite' computes Q_λ(x) = p(b) Q_b(x) + p(b') Q_b'(x), and the
    expected BOPs are λ_w λ_a MACs. A search starts from the widest candidates, less
    what its budgets ask for.

    Source: FracBits: Mixed Precision Quantization via Fractional Bit-Widths, 2020,
    arXiv 2007.02017. There any integer is a width, and λ is rounded at the end, which
    the solver does here.

    Args:
        candidates: The m candidate precisions, all pairs of their widths.
        group: Name of the group, for logs and reports.
    """

    def __init__(self, candidates: Sequence[Precision], group: str = '') -> None:
        super().__init__(candidates, group=group)
        self.require_grid('relaxation FracBits')
        self.set_logits(2)

    def probs(self) -> Tensor:
        w, a = self.logits.split(1)
        w_probs, a_probs = neighbours(self.w_bits, w), neighbours(self.a_bits, a)
        return w_probs[self.w_index] * a_probs[self.a_index]

    def tilt(self, costs: Tensor) -> Tensor:
        """What a bit costs on average (2,)."""
        slopes = []
        for widths, index in (self.w_bits, self.w_index), (self.a_bits, self.a_index):
            index = index.to(costs.device)
            least = costs[index == 0].mean()
            most = costs[index == len(widths) - 1].mean()
            slopes.append((most - least) / max(1, widths[-1] - widths[0]))
        return torch.stack(slopes)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Nothing random; but θ does not wander off beyond its range."""
        spans = [b[0] - b[-1] for b in (self.w_bits, self.a_bits)]
        self.logits.clamp_(constant(spans, self.logits), torch.zeros_like(self.logits))


def neighbours(widths: Sequence[int], theta: Tensor) -> Tensor:
    """Shares of the widths (n,), of which the two next to λ are not 0.

    Args:
        widths: Ascending.
        theta: λ - b_max (1,).
    """
    if len(widths) == 1:
        return torch.ones_like(theta)
    bits = constant(widths, theta)
    free = theta + widths[-1]
    width = free + (free.clamp(widths[0], widths[-1]) - free).detach()
    upper = torch.searchsorted(bits, width.detach(), right=True)
    upper = upper.clamp(1, len(widths) - 1)
    low, high = bits[upper - 1], bits[upper]
    share = (width - low) / (high - low)
    none = torch.zeros(len(widths), dtype=theta.dtype, device=theta.device)
    return none.scatter(0, upper - 1, 1 - share).scatter(0, upper, share)
