"""Learned step size quantization."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmmpq.quantizers.base import Quantizer
from mmmpq.quantizers.functional import Levels
from mmmpq.registry import QUANTIZERS


@QUANTIZERS.register_module()
class LSQQuantizer(Quantizer):
    """x̂ = round(clip(x / |s|, Qn, Qp)) · |s| with one learned step s per width.

    Signed: Qn = -2^(b-1), Qp = 2^(b-1) - 1; unsigned: Qn = 0, Qp = 2^b - 1. The
    gradient of s is scaled by 1 / sqrt(numel · Qp); s starts at 2 · mean|x| / sqrt(Qp).

    Source: Learned Step Size Quantization, 2020, arXiv 1902.08153.

    Args:
        bits: The widths to serve, at least 2.
        target: 'weight' or 'activation'.
        per_channel: One step per output channel; weights alone.
        channels: Output channels of the layer.
    """

    def __init__(
        self,
        bits: Sequence[int],
        target: str,
        per_channel: bool = False,
        channels: int = 1,
    ) -> None:
        super().__init__(bits, target, channels if per_channel else 1, min_bits=2)
        if per_channel and target != 'weight':
            raise ValueError('quantizer.per_channel: accepted for weights only')
        self.step = self.per_width()

    def levels(self, bits: int) -> Levels:
        levels = super().levels(bits)
        return levels and (levels[0] - (levels[0] < 0), levels[1])

    def calibrate(self, x: Tensor) -> None:
        x = self.calibration_rows(x)
        if x is None:
            return
        mean = x.abs().mean(dim=1).clamp_min(1e-8)
        with torch.no_grad():
            for i, bits in enumerate(self.bits):
                self.step[i] = 2 * mean / self.top(bits) ** 0.5

    def ranges(self, bits: Sequence[int]) -> tuple[Tensor, tuple[float, ...]]:
        """s of the widths ``bits``, and ones."""
        return self.rows(self.step, bits), (1.0,) * len(bits)

    def scale_grad(self, x: Tensor, bits: int) -> float:
        return 1 / max(1.0, self.top(bits) * x.numel() / self.channels) ** 0.5
