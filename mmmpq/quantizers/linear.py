"""The linear quantizer: evenly spaced levels, zero among them, up to a range a."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmmpq.quantizers.base import Quantizer, constant
from mmmpq.quantizers.ranges import (
    least_squares_range,
    scale_clip_range,
    subsample,
)
from mmmpq.registry import QUANTIZERS

RANGES = ('learned', 'scale_clip')


@QUANTIZERS.register_module()
class LinearQuantizer(Quantizer):
    """Uniform, symmetric, straight-through quantizer with a clip range a.

    Weights and signed activations, with n = 2^(b-1) - 1::

        Q(x) = round(clip(x, -a, a) / a · n) · a / n

    Unsigned activations, with n = 2^b - 1::

        Q(x) = round(clip(x, 0, a) / a · n) · a / n

    Source: Search What You Want: Barrier Panelty NAS for Mixed Precision Quantization,
    2020, arXiv 2007.10026.

    Args:
        bits: The widths to serve, at least 2 (a signed 1-bit grid has no level but 0).
        target: 'weight' or 'activation'.
        range: Where a comes from. 'learned': one trained a per width (and channel),
            started at the least squares fit; its gradient is scaled as LSQ's, by
            min(n, 7)^1.5 / sqrt(numel). 'scale_clip': a = clip_ratio · mean|x|, of the
            tensor itself for weights, of a slow average over training for activations,
            the same for all widths.
        clip_ratio: k of Scale-Clip. Default: 2 for weights, 4 for activations (ours).
        per_channel: One learned range per output channel; weights alone.
        channels: Output channels of the layer.
        momentum: Step of the slow average of activations.
    """

    def __init__(
        self,
        bits: Sequence[int],
        target: str,
        range: str = 'learned',
        clip_ratio: float | None = None,
        per_channel: bool = False,
        channels: int = 1,
        momentum: float = 0.01,
    ) -> None:
        super().__init__(bits, target, channels if per_channel else 1, min_bits=2)
        if range not in RANGES:
            raise ValueError(f'quantizer.range: found {range!r}; accepted are {RANGES}')
        if per_channel and (target != 'weight' or range != 'learned'):
            raise ValueError(
                'quantizer.per_channel: accepted for weights with range="learned" '
                f'only; found target={target!r}, range={range!r}'
            )
        if clip_ratio is not None and not clip_ratio > 0:
            raise ValueError(
                f'quantizer.clip_ratio: found {clip_ratio!r}; accepted are numbers > 0'
            )
        self.learned = range == 'learned'
        self.clip_ratio = clip_ratio or (2.0 if target == 'weight' else 4.0)
        self.momentum = momentum
        if self.learned:
            self.range = self.per_width()
        elif target == 'activation':
            self.register_buffer('range', torch.ones(1, 1))
        else:
            self.set_sign(True)

    def calibrate(self, x: Tensor) -> None:
        """Fits sign and ranges to ``x``: weights, or a sample of activations."""
        x = self.calibration_rows(x)
        if x is None:
            return
        with torch.no_grad():
            if self.learned:
                rows = subsample(x, 16384 if self.channels == 1 else 1024)
                for i, bits in enumerate(self.bits):
                    self.range[i] = least_squares_range(rows, self.levels(bits))
            elif self.target == 'activation':
                self.range.fill_(scale_clip_range(x, self.clip_ratio))

    def ranges(self, bits: Sequence[int]) -> tuple[Tensor, tuple[float, ...]] | None:
        """a and n of the widths ``bits``, if a is learned."""
        if not self.learned:
            return None
        return self.rows(self.range, bits), tuple(self.top(b) for b in bits)

    def scales(self, x: Tensor, bits: Sequence[int]) -> Tensor:
        """a / n of the widths ``bits``: (m, ...), broadcastable against ``x``."""
        if self.learned:
            return super().scales(x, bits)
        tops = constant([self.top(b) for b in bits], x)
        return self._clip_range(x).clamp_min(1e-8) / tops

    def scale_grad(self, x: Tensor, bits: int) -> float:
        # LSQ balances its step s by 1 / sqrt(N n); a = n · s takes n² of that. Above
        # three bits the rounding noise would then move a more than the clipped values
        # do, and the range drifts until the loss diverges.
        top = min(self.top(bits), 7)
        return top**1.5 / max(1.0, x.numel() / self.channels) ** 0.5

    @torch.no_grad()
    def _clip_range(self, x: Tensor) -> Tensor:
        if self.target == 'weight':
            return scale_clip_range(x, self.clip_ratio)
        if self.training and x.numel():
            now = scale_clip_range(x, self.clip_ratio).to(self.range.dtype)
            self.range.lerp_(now, self.momentum)
        return self.range.reshape(()).clone()
