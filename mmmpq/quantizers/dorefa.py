"""The quantizers of DNAS: DoReFa weights, PACT activations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmmpq.quantizers.base import Quantizer, constant
from mmmpq.quantizers.functional import Levels, fake_quantize, mix_fake_quantize
from mmmpq.quantizers.ranges import least_squares_range
from mmmpq.registry import QUANTIZERS


@QUANTIZERS.register_module()
class DoReFaQuantizer(Quantizer):
    """Weights on an even grid of ±1, with Q_k(x) = round((2^k - 1) x) / (2^k - 1)::

        w_q = 2 · Q_k(tanh(w) / (2 · max|tanh w|) + ½) - 1

    There is no zero level; the gradient passes the rounding and goes through the rest.

    Source: DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low
    Bitwidth Gradients, 2016, arXiv 1606.06160.

    Args:
        bits: The widths to serve, 1 to 8 and 32, the weight as it is.
        target: 'weight'.
        rescale: Multiply by mean|w| / mean|tanh(w) / max|tanh w||, so that weights keep
            their size (ours), for layers without a BatchNorm behind them.
        channels: Output channels of the layer; not used.

    Raises:
        ValueError: The target is 'activation': :class:`PACTQuantizer` is for these.
    """

    gradient = 'identity'

    def __init__(
        self,
        bits: Sequence[int],
        target: str,
        rescale: bool = False,
        channels: int = 1,
    ) -> None:
        super().__init__(bits, target)
        if target != 'weight':
            raise ValueError(
                'quantizer.type: DoReFaQuantizer is for weights; accepted for '
                "activations is a_quantizer=dict(type='PACTQuantizer')"
            )
        self.rescale = rescale
        self.set_sign(True)

    def calibrate(self, x: Tensor) -> None:
        """Nothing to fit."""

    def levels(self, bits: int) -> Levels:
        return None if bits == 32 else (0, 2**bits - 1)

    def scales(self, x: Tensor, bits: Sequence[int]) -> Tensor:
        """2 / (2^k - 1), times the gain of ``rescale``, of the widths ``bits`` (m,)."""
        steps = constant([2 / self.top(b) for b in bits], x)
        return steps * _gain(x, _squashed(x)) if self.rescale else steps

    def offsets(self, x: Tensor, bits: Sequence[int]) -> Tensor:
        return constant([self.top(b) / 2 for b in bits], x)

    def forward(self, x: Tensor, bits: int) -> Tensor:
        if bits == 32:
            return x
        return self.mix(x, (bits,), None)

    def mix(self, x: Tensor, bits: Sequence[int], probs: Tensor | None) -> Tensor:
        widths = [b for b in bits if b != 32]
        squashed = _squashed(x)
        levels = [self.levels(b) for b in widths]
        steps = constant([2 / self.top(b) for b in widths], x)
        offsets = self.offsets(x, widths)
        if self.rescale:
            gain = _gain(x, squashed)
            squashed, steps = squashed * gain, steps * gain
        if probs is None:
            step, offset = steps[0], offsets[0]
            out = fake_quantize(squashed, step, levels[0], 1.0, offset, self.gradient)
        else:
            places = [j for j, b in enumerate(bits) if b != 32]
            out = mix_fake_quantize(
                squashed,
                steps,
                probs if len(places) == len(bits) else probs[places],
                levels,
                [1.0] * len(places),
                offsets,
                self.gradient,
            )
        if len(widths) < len(bits):
            out = out + probs[list(bits).index(32)] * x
        return out


def _squashed(x: Tensor) -> Tensor:
    squashed = torch.tanh(x)
    return squashed / squashed.abs().max().clamp_min(1e-8)


def _gain(x: Tensor, squashed: Tensor) -> Tensor:
    """mean|x| / mean|squashed|, without a gradient."""
    mean = squashed.detach().abs().mean().clamp_min(1e-8)
    return x.detach().abs().mean() / mean


@QUANTIZERS.register_module()
class PACTQuantizer(Quantizer):
    """Activations clipped at a learned a, one per width, with n = 2^k - 1::

        y = ½ (|x| - |x - a| + a);  y_q = round(y · n / a) · a / n

    d y_q / d a is 1 where x > a and 0 elsewhere. Signed inputs, which the papers do not
    have, are clipped at ±a, with n = 2^(k-1) - 1. a starts at the least squares fit.

    Source: PACT: Parameterized Clipping Activation for Quantized Neural Networks, 2018,
    arXiv 1805.06085.

    Args:
        bits: The widths to serve, 1 to 8 (signed inputs: at least 2), 16 and 32.
        target: 'activation'.
        channels: Output channels of the layer; not used.

    Raises:
        ValueError: The target is 'weight': :class:`DoReFaQuantizer` is for these.
    """

    gradient = 'clip'

    def __init__(self, bits: Sequence[int], target: str, channels: int = 1) -> None:
        super().__init__(bits, target)
        if target != 'activation':
            raise ValueError(
                'quantizer.type: PACTQuantizer is for activations; accepted for '
                "weights is w_quantizer=dict(type='DoReFaQuantizer')"
            )
        self.range = self.per_width()

    def levels(self, bits: int) -> Levels:
        if bits == 1 and self._signed > 0:
            raise ValueError(
                'candidates: PACTQuantizer of a signed activation needs at least 2 '
                'bits; found 1'
            )
        return super().levels(bits)

    def calibrate(self, x: Tensor) -> None:
        """Fits sign and ranges to ``x``."""
        x = self.calibration_rows(x)
        if x is None:
            return
        with torch.no_grad():
            for i, bits in enumerate(self.bits):
                self.range[i] = least_squares_range(x, self.levels(bits))

    def ranges(self, bits: Sequence[int]) -> tuple[Tensor, tuple[float, ...]]:
        """a and n of the widths ``bits``."""
        return self.rows(self.range, bits), tuple(self.top(b) for b in bits)
