"""The linear quantizer: evenly spaced levels, zero among them, up to a range a."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmmpq.quantizers.base import Quantizer, constant
from mmmpq.quantizers.functional import Levels
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

    A learned range is kept as a = r · u: u, a power of two, is about what calibration
    found, r is trained. So the rate of an optimizer that knows no scale (Adam) is that
    of a relative change, of whatever size the tensor is; and the gradient of r is such
    that with one that does (SGD) a moves as if it were trained itself.

    Source: Search What You Want: Barrier Panelty NAS for Mixed Precision Quantization,
    2020, arXiv 2007.10026.

    Args:
        bits: The widths to serve, at least 2 (a signed 1-bit grid has no level but 0).
        target: 'weight' or 'activation'.
        range: Where a comes from. 'learned': one trained a per width (and channel),
            started at the least squares fit; the gradient of a is scaled as LSQ's, by
            min(n, 7)^1.5 / sqrt(numel). 'scale_clip': a = clip_ratio · mean|x|, of the
            tensor itself for weights, of a slow average over training for activations,
            the same for all widths.
        clip_ratio: k of Scale-Clip. Default: 2 for weights, 4 for activations (ours).
        per_channel: One learned range per output channel; weights alone.
        channels: Output channels of the layer.
        momentum: Step of the slow average of activations.
        all_levels: Weights of up to 3 bits take 2^b levels, ±½s, ±1½s, … up to a, in
            place of the 2^b - 1 with a zero among them.

    Attributes:
        lowest: Whether signed levels begin at -2^(b-1), as integers of b bits do.
    """

    lowest = False

    def __init__(
        self,
        bits: Sequence[int],
        target: str,
        range: str = 'learned',
        clip_ratio: float | None = None,
        per_channel: bool = False,
        channels: int = 1,
        momentum: float = 0.01,
        all_levels: bool = False,
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
        if not 0 <= momentum <= 1:
            raise ValueError(
                f'quantizer.momentum: found {momentum!r}; accepted are numbers from 0 '
                'to 1'
            )
        self.learned = range == 'learned'
        self.clip_ratio = clip_ratio or (2.0 if target == 'weight' else 4.0)
        self.momentum = momentum
        self.all_levels = all_levels and target == 'weight'
        if self.learned:
            self.range = self.per_width()
            self.register_buffer('unit', torch.ones(len(self.bits)))
            self._unit = (1.0,) * len(self.bits)  # on the host
        elif target == 'activation':
            self.register_buffer('range', torch.ones(1, 1))
        else:
            self.set_sign(True)

    def levels(self, bits: int) -> Levels:
        if self._halves(bits):
            return 1 - 2 ** (bits - 1), 2 ** (bits - 1)
        levels = super().levels(bits)
        if self.lowest and levels and levels[0] < 0:
            return levels[0] - 1, levels[1]
        return levels

    def _halves(self, bits: int) -> bool:
        """Whether the levels lie half way between those with a zero."""
        return self.all_levels and bits <= 3

    def divisor(self, bits: int) -> float:
        """n, of the step a / n."""
        return self.top(bits) - 0.5 * self._halves(bits)

    def offsets(self, x: Tensor, bits: Sequence[int]) -> Tensor | None:
        halves = [0.5 * self._halves(b) for b in bits]
        if not any(halves):
            return None
        z = constant(halves, x)
        if self.channels == 1:
            return z
        shape = len(bits), self.channels, *[1] * (x.dim() - 1)
        return z.reshape(-1, *[1] * x.dim()).expand(shape)

    def calibrate(self, x: Tensor) -> None:
        """Fits sign and ranges to ``x``: weights, or a sample of activations."""
        x = self.calibration_rows(x)
        if x is None:
            return
        with torch.no_grad():
            if self.learned:
                rows = subsample(x, 16384 if self.channels == 1 else 1024)
                for i, bits in enumerate(self.bits):
                    self._start(i, self._fit(rows, bits))
                self.sync_host()
            elif self.target == 'activation':
                self.range.fill_(scale_clip_range(x, self.clip_ratio))

    def _fit(self, rows: Tensor, bits: int) -> Tensor:
        halves = 0.5 * self._halves(bits)
        return least_squares_range(rows, self.levels(bits), halves)

    def _start(self, i: int, a: Tensor) -> None:
        """Sets the ranges (channels,) of the i-th width."""
        self.unit[i] = a.mean().log2().round().exp2()  # exact in any dtype
        self.range[i] = a / self.unit[i]

    def clip(self) -> Tensor:
        """The learned a of every width (and channel): (m, channels)."""
        return self.range.detach() * self.unit[:, None]

    def sync_host(self) -> None:
        super().sync_host()
        if self.learned:
            self._unit = tuple(self.unit.tolist())

    def of_widths(self) -> dict[str, Tensor]:
        return super().of_widths() | (dict(unit=self.unit) if self.learned else {})

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        if self.learned and f'{prefix}range' in state_dict:  # of before: in units of 1
            ones = torch.ones_like(state_dict[f'{prefix}range'][:, 0])
            state_dict.setdefault(f'{prefix}unit', ones)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def ranges(self, bits: Sequence[int]) -> tuple[Tensor, tuple[float, ...]] | None:
        """r of the widths ``bits`` and n / u, if a = r · u is learned."""
        if not self.learned:
            return None
        divisors = tuple(self.divisor(b) / self._unit_of(b) for b in bits)
        return self.rows(self.range, bits), divisors

    def _unit_of(self, bits: int) -> float:
        return self._unit[self.bits.index(bits)]

    def scales(self, x: Tensor, bits: Sequence[int]) -> Tensor:
        """a / n of the widths ``bits``: (m, ...), broadcastable against ``x``."""
        if self.learned:
            return super().scales(x, bits)
        divisors = constant([self.divisor(b) for b in bits], x)
        return self._clip_range(x).clamp_min(1e-8) / divisors

    def scale_grad(self, x: Tensor, bits: int) -> float:
        # LSQ balances its step s by 1 / sqrt(N n); a = n · s takes n² of that. Above
        # three bits the rounding noise would then move a more than the clipped values
        # do, and the range drifts until the loss diverges.
        top = min(self.top(bits), 7)
        scale = top**1.5 / max(1.0, x.numel() / self.channels) ** 0.5
        # r = a / u moves by 1 / u of what a does, and its gradient is u times a's.
        return scale / self._unit_of(bits) ** 2 if self.learned else scale

    @torch.no_grad()
    def _clip_range(self, x: Tensor) -> Tensor:
        if self.target == 'weight':
            return scale_clip_range(x, self.clip_ratio)
        if self.training and x.numel():
            now = scale_clip_range(x, self.clip_ratio).to(self.range.dtype)
            self.range.lerp_(now, self.momentum)
        return self.range.reshape(()).clone()
