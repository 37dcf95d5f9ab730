"""A quantizer whose steps are powers of two, so that a rescale is a shift."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmmpq.quantizers import Quantizer
from mmmpq.quantizers.base import constant
from mmmpq.quantizers.functional import Levels
from mmmpq.registry import QUANTIZERS


@QUANTIZERS.register_module()
class PowerOfTwoQuantizer(Quantizer):
    """x̂ = clip(round(x / s), n, p) · s with the step s = 2^⌈t⌉ / 2^(b - signed).

    The threshold 2^t is trained, one per width, straight-through ⌈·⌉. Signed
    n = -2^(b-1), p = 2^(b-1) - 1; unsigned n = 0, p = 2^b - 1.

    Source: Trained Quantization Thresholds for Accurate and Efficient Fixed-Point
    Inference of Deep Neural Networks, 2019, arXiv 1903.08066; of its starts, that of
    weights, three standard deviations, also for activations.

    Args:
        bits: The widths to serve, at least 2.
        target: 'weight' or 'activation'.
        channels: Output channels of the layer; not used.
    """

    def __init__(self, bits: Sequence[int], target: str, channels: int = 1) -> None:
        super().__init__(bits, target, min_bits=2)
        self.threshold: nn.Parameter = self.per_width()  # t

    def levels(self, bits: int) -> Levels:
        levels = super().levels(bits)
        return levels and (levels[0] - (levels[0] < 0), levels[1])

    def calibrate(self, x: Tensor) -> None:
        x = self.calibration_rows(x)
        if x is not None:
            rms = x.square().mean().sqrt().clamp_min(1e-8)
            with torch.no_grad():
                self.threshold.fill_(torch.log2(3 * rms))

    def scales(self, x: Tensor, bits: Sequence[int]) -> Tensor:
        t = self.rows(self.threshold, bits)[:, 0]
        t = t + (t.ceil() - t).detach()
        return torch.exp2(t) / constant([self.top(b) + 1 for b in bits], x)
