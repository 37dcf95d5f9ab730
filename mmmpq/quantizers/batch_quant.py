"""BatchQuant: activations on the range of the present batch."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmmpq.quantizers.base import Quantizer, constant
from mmmpq.quantizers.functional import Levels, uniform_levels
from mmmpq.registry import QUANTIZERS

EPS = 1e-8


@QUANTIZERS.register_module()
class BatchQuantizer(Quantizer):
    """Activations between the mean minimum and maximum of their channels.

    With m_c and M_c the minimum and maximum of channel c over the batch, without
    gradient, qmin = 0, qmax = 2^b - 1, and learned s and o (from 0), one of each per
    width::

        x_min = min(0, mean_c m_c);  x_max = max(0, mean_c M_c)
        Δ = max((x_max - x_min) / (qmax - qmin), 1e-8)
        z = clip(qmin - round(x_min / Δ), qmin, qmax)     (Δ = 1, z = 0 if both are 0)
        γ = log2(1 + 2^s)
        q = round(clip(x γ / Δ + z + o, qmin, qmax));  x̂ = (q - z - o) Δ / γ

    which is a uniform quantizer of step Δ / γ and offset z + o, straight-through.

    In training x_min and x_max are those of the batch, whatever the net that gave it,
    and none are remembered. In evaluation they are averages over training batches that
    :func:`mmmpq.models.calibrate_subnet` has gathered. A checkpoint of other widths, or
    of several, hands none over.

    Source: BatchQuant: Quantized-for-all Architecture Search with Robust Quantizer,
    2021, arXiv 2105.08952.

    Args:
        bits: The widths to serve, 1 to 8, 16 and 32, the input as it is.
        target: 'activation'.
        channels: Output channels of the layer; not used.

    Attributes:
        extremes: The averages of mean_c m_c and mean_c M_c (2,), once calibrated.

    Raises:
        ValueError: The target is 'weight'; evaluation without statistics.
    """

    per_subnet = True

    def __init__(self, bits: Sequence[int], target: str, channels: int = 1) -> None:
        super().__init__(bits, target)
        if target != 'activation':
            raise ValueError(
                'quantizer.type: BatchQuantizer is for activations; accepted for '
                "weights is w_quantizer=dict(type='LSQQuantizer')"
            )
        trained = any(b != 32 for b in self.bits)
        zeros = torch.zeros(len(self.bits))
        self.gain = nn.Parameter(zeros.clone(), requires_grad=trained)  # s
        self.shift = nn.Parameter(zeros.clone(), requires_grad=trained)  # o
        self.register_buffer('extremes', torch.zeros(2))

    @property
    def calibrated(self) -> bool:
        return super().calibrated or set(self.bits) == {32}

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, metadata: dict, *args
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)
        stored = tuple(metadata.get('bits', self.bits))
        if len(self.bits) > 1 or stored != self.bits:
            self.forget()  # they are those of one subnet, and it is not said of which

    def levels(self, bits: int) -> Levels:
        return uniform_levels(bits, signed=False)

    def calibrate(self, x: Tensor) -> None:
        """Nothing to fit: a sample without channels tells nothing."""

    @property
    def statistics(self) -> Tensor:
        return self.extremes

    def scales(self, x: Tensor, bits: Sequence[int]) -> Tensor:
        """Δ / γ of the widths ``bits`` (m,)."""
        return self.grids(x, bits)[0]

    def offsets(self, x: Tensor, bits: Sequence[int]) -> Tensor:
        """z + o of the widths ``bits`` (m,)."""
        return self.grids(x, bits)[1]

    def grids(self, x: Tensor, bits: Sequence[int]) -> tuple[Tensor, Tensor]:
        low, high = self._extremes(x)
        low, high = low.clamp_max(0), high.clamp_min(0)
        tops = constant([self.top(b) for b in bits], x)
        empty = low == high
        delta = torch.where(empty, 1, ((high - low) / tops).clamp_min(EPS))
        zero = torch.minimum(torch.round(-low / delta), tops)
        gain = self.rows(self.gain, bits)
        gamma = torch.logaddexp2(gain, torch.zeros_like(gain))
        return delta / gamma, zero + self.rows(self.shift, bits)

    @torch.no_grad()
    def _extremes(self, x: Tensor) -> Tensor:
        """mean_c m_c and mean_c M_c (2,), of the batch or of calibration."""
        if self.training:
            if self.gathered is None:
                self.forget()  # the weights are about to change
            if x.numel() == 0:
                return torch.zeros_like(self.extremes)
            channel = self.channel_dim % x.dim()
            dims = [d for d in range(x.dim()) if d != channel]
            extremes = torch.stack(
                [x.amin(dims).float().mean(), x.amax(dims).float().mean()]
            )
            if self.gathered is not None:
                self.gathered.append(extremes)
            return extremes
        if not self.calibrated:
            raise ValueError(
                'BatchQuantizer: found no statistics to evaluate with; a net has them '
                'once it is calibrated, after every change of the subnet: '
                'mmmpq.models.calibrate_subnet(model, batches), or in a config '
                "custom_hooks=[dict(type='mmmpq.CalibrationHook')], which does it "
                'before a test. Stages that are frozen (frozen_stages) need them in '
                'training, too: accepted is frozen_stages=-1'
            )
        return self.extremes
