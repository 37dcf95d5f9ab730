"""Learned steps and, for signed activations, learned zero points."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmmpq.quantizers.base import constant
from mmmpq.quantizers.functional import Levels, uniform_levels
from mmmpq.quantizers.linear import LinearQuantizer
from mmmpq.quantizers.ranges import least_squares_span
from mmmpq.registry import QUANTIZERS


@QUANTIZERS.register_module()
class LSQPlusQuantizer(LinearQuantizer):
    """Learned ranges; the levels of signed activations need not be symmetric.

    Signed activations, such as those of SiLU and h-swish, from -u · a to (1 - u) · a,
    span a and share u one a width, with n = 2^b - 1 and zero among the levels::

        s = a / n;  z = round(u · n);  Q(x) = (round(clip(x / s + z, 0, n)) - z) · s

    z is rounded straight-through: with β = -u · a, dQ/dβ is 1 outside and 0 inside, as
    published. Both start at the least squares fit. What has no negative values, and
    weights, are as of :class:`LinearQuantizer` with ``all_levels``.

    Source: LSQ+: Improving Low-Bit Quantization through Learnable Offsets and Better
    Initialization, 2020, arXiv 2004.09576. The zero point is real there, and weights
    have 2^b levels around zero with one more below it.

    Args:
        bits: The widths to serve, at least 2.
        target: 'weight' or 'activation'.
        per_channel: One range per output channel; weights alone.
        channels: Output channels of the layer.
        all_levels: See :class:`LinearQuantizer`.
    """

    def __init__(
        self,
        bits: Sequence[int],
        target: str,
        per_channel: bool = False,
        channels: int = 1,
        all_levels: bool = True,
    ) -> None:
        super().__init__(
            bits,
            target,
            per_channel=per_channel,
            channels=channels,
            all_levels=all_levels,
        )
        if target == 'activation':
            self.zero = self.per_width()  # u
            torch.nn.init.zeros_(self.zero)

    @property
    def _shifted(self) -> bool:
        return self.target == 'activation' and self._signed == 1

    def levels(self, bits: int) -> Levels:
        if self.target == 'activation':
            return uniform_levels(bits, signed=False)
        return super().levels(bits)

    def _fit(self, rows: Tensor, bits: int) -> Tensor:
        if not self._shifted or bits == 32:
            return super()._fit(rows, bits)
        low, high = least_squares_span(rows, self.levels(bits))
        self.zero[self.bits.index(bits)] = -low / (high - low)
        return high - low

    def ranges(self, bits: Sequence[int]) -> tuple[Tensor, tuple[float, ...]]:
        ranges, divisors = super().ranges(bits)
        idle = self.target == 'activation' and not self._shifted
        if idle and ranges.requires_grad and torch.is_grad_enabled():
            # Without a part in the forward pass it would stop DDP.
            ranges = ranges + 0 * self.rows(self.zero, bits)
        return ranges, divisors

    def offsets(self, x: Tensor, bits: Sequence[int]) -> Tensor | None:
        """z of the widths ``bits`` (m,)."""
        if not self._shifted:
            return super().offsets(x, bits)
        share = self.rows(self.zero, bits)[:, 0]
        z = share.detach().clamp(0, 1) * constant([self.top(b) for b in bits], x)
        z = z.round_()
        if not share.requires_grad:
            return z
        # Straight-through, from outside of [0, 1], too; with the step of the span.
        slope = [self.top(b) * self.scale_grad(x, b) for b in bits]
        return z + (share - share.detach()) * constant(slope, x)
