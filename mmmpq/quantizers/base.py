"""What every quantizer offers to a layer."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from mmmpq.quantizers.functional import (
    RANGE_MIN,
    Levels,
    mix_fake_quantize,
    uniform_levels,
)
from mmmpq.quantizers.kernels.native import floats
from mmmpq.quantizers.ranges import nonzero_rows

TARGETS = ('weight', 'activation')
NO_RANGE = (  # what is said of a quantizer that is not calibrated
    'it has seen no input, or only zeros; accepted are a fine-tuned checkpoint, some '
    'batches of images before the export, and quant.exclude, which leaves it float'
)


class Quantizer(nn.Module):
    """Quantizes one tensor of one layer at any of several bit-widths.

    A subclass gives ``calibrate`` and, for evenly spaced levels, ``ranges`` or
    ``scales`` with ``scale_grad``; or ``forward`` and ``mix`` of its own. It knows no
    layer.

    The class attribute ``gradient`` is as of :func:`.functional.fake_quantize`.

    One whose evaluation needs statistics of the net in use, which are measured anew for
    every subnet and after training (:func:`mmmpq.models.calibrate_subnet`), sets
    ``per_subnet``. While ``gathered`` is a list each training call appends its own to
    it, a tensor of the shape of the buffer ``statistics``; :meth:`set_statistics` takes
    their mean, :meth:`forget` drops it. It is ``calibrated`` in between, with a sign.

    Args:
        bits: The distinct widths that it must serve; 32 is the identity.
        target: 'weight' or 'activation'.
        channels: Output channels, for a quantizer of weights per output channel.
        min_bits: The smallest width that the quantizer can represent.

    Raises:
        ValueError: An unknown target, or a width below ``min_bits``.
    """

    gradient = 'lsq'
    per_subnet = False
    statistics: Tensor
    gathered: list[Tensor] | None = None
    # Of activations: 1 as in (N, C, ...), -1 where a linear layer's tokens come last.
    channel_dim = 1

    def __init__(
        self,
        bits: Sequence[int],
        target: str,
        channels: int = 1,
        min_bits: int = 1,
    ) -> None:
        super().__init__()
        if target not in TARGETS:
            raise ValueError(f'target: found {target!r}; accepted are {TARGETS}')
        low = [b for b in bits if b < min_bits]
        if low:
            raise ValueError(
                f'candidates: {type(self).__name__} of a {target} needs at least '
                f'{min_bits} bits; found {low[0]}'
            )
        self.bits: tuple[int, ...] = tuple(bits)
        self.target = target
        self.channels = channels
        # 1 signed, 0 unsigned, -1 not calibrated yet. The attribute beside the buffer
        # spares a device synchronisation per call.
        self.register_buffer('signed', torch.tensor(-1, dtype=torch.int8))
        self._signed = -1
        self.blank = False  # whether what it has seen was zero
        self._register_state_dict_hook(_note_widths)

    @property
    def calibrated(self) -> bool:
        return self._signed >= 0

    def levels(self, bits: int) -> Levels:
        return uniform_levels(bits, self._signed != 0)

    def set_sign(self, signed: bool) -> None:
        self._signed = int(signed)
        self.signed.fill_(self._signed)

    def sync_host(self) -> None:
        """Takes what the host knows from the buffers, after a load or a broadcast."""
        self._signed = int(self.signed)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, metadata: dict, *args
    ) -> None:
        stored = metadata.get('bits')  # none in a checkpoint of before
        if stored is not None and tuple(stored) != self.bits:
            self._choose_widths(state_dict, prefix, stored)
        elif any(
            len(state_dict.get(prefix + name, param)) != len(param)
            for name, param in self._parameters.items()
        ):
            self._choose_widths(state_dict, prefix, ())  # of unknown widths
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)
        self.sync_host()

    def _choose_widths(self, state: dict, prefix: str, stored: Sequence[int]) -> None:
        """Takes the rows of its own widths out of those that ``state`` has.

        If there are none for some of them all is to be calibrated anew, as if nothing
        had been stored. Float is no loss: what it has is not used.
        """
        if set(self.bits) - {32} <= set(stored):
            for name, tensor in self.of_widths().items():
                key = prefix + name
                if key in state:
                    rows = zip(self.bits, tensor.detach().to(state[key]), strict=True)
                    state[key] = torch.stack(
                        [
                            state[key][stored.index(b)] if b in stored else r
                            for b, r in rows
                        ]
                    )
        else:
            for key in [k for k in state if k.startswith(prefix)]:
                del state[key]

    def calibrate(self, x: Tensor) -> None:
        """Sets sign and ranges from a sample ``x`` of the tensor to be quantized."""
        raise NotImplementedError

    def set_statistics(self, mean: Tensor) -> None:
        """Sets the statistics that evaluation uses; with ``per_subnet`` alone."""
        self.statistics.copy_(mean)
        self.set_sign(False)

    def forget(self) -> None:
        """Drops the statistics: those of one subnet are of no use to another."""
        if self.per_subnet and self._signed >= 0:
            self._signed = -1
            self.signed.fill_(-1)

    def calibration_rows(self, x: Tensor) -> Tensor | None:
        """The sample ``x`` as (channels, values), with the sign set from it.

        None if it tells nothing, being empty or activations that are all zero: the
        quantizer then waits for its next input.
        """
        x = x.detach().float()
        if x.numel() == 0:
            return None
        self.blank = self.target == 'activation' and not x.any()
        if self.blank:
            return None
        self.set_sign(self.target == 'weight' or bool((x < 0).any()))
        if self.target == 'weight':
            return nonzero_rows(x, self.channels)
        return x.reshape(1, -1)

    def ranges(self, bits: Sequence[int]) -> tuple[Tensor, tuple[float, ...]] | None:
        """Trained r (m, channels) and n (m), for steps max(|r|, 1e-8) / n.

        None: the steps are of another form, and :meth:`scales` has it.
        """
        return None

    def scales(self, x: Tensor, bits: Sequence[int]) -> Tensor:
        """Steps of the widths ``bits``: (m, ...), each broadcastable against ``x``."""
        ranges, divisors = self.ranges(bits)
        steps = ranges.abs().clamp_min(RANGE_MIN) / constant(divisors, x)[:, None]
        if self.channels == 1:
            return steps[:, 0]
        return steps.reshape(len(bits), -1, *[1] * (x.dim() - 1))

    def scale_grad(self, x: Tensor, bits: int) -> float:
        """Factor on the gradient of the step of ``bits``."""
        return 1.0

    def offsets(self, x: Tensor, bits: Sequence[int]) -> Tensor | None:
        """Offsets z of the widths ``bits``, of the shape of the steps; None: zeros."""
        return None

    def grids(self, x: Tensor, bits: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Steps and offsets of the widths ``bits``."""
        return self.scales(x, bits), self.offsets(x, bits)

    def forward(self, x: Tensor, bits: int) -> Tensor:
        """``x`` at ``bits`` bits, in its own shape and dtype."""
        if bits == 32 or self._is_traced_bare():
            return x
        if not self.calibrated:
            self.calibrate(x)
        return self._fake_quantize(x, (bits,), None)

    def mix(self, x: Tensor, bits: Sequence[int], probs: Tensor) -> Tensor:
        """Σ_j p_j Q_j(x) over the widths ``bits`` with coefficients ``probs`` (m,)."""
        if self._is_traced_bare():
            return x
        if not self.calibrated:
            self.calibrate(x)
        return self._fake_quantize(x, bits, probs)

    def _is_traced_bare(self) -> bool:
        """Whether a net without ranges is traced by ``torch.jit``, as to count FLOPs:
        it stays without, and what a calibration computes does not get into the graph.
        """
        return not self.calibrated and torch.jit.is_tracing()

    def _fake_quantize(
        self, x: Tensor, bits: Sequence[int], probs: Tensor | None
    ) -> Tensor:
        ranges = self.ranges(bits)
        if ranges is None:
            (scale, offset), divisors = self.grids(x, bits), None
        else:  # from ranges to steps within the operation: half of the small ones less
            (scale, divisors), offset = ranges, self.offsets(x, bits)
        return mix_fake_quantize(
            x,
            scale,
            probs,
            [self.levels(b) for b in bits],
            [self.scale_grad(x, b) for b in bits],
            offset,
            self.gradient,
            divisors,
        )

    def top(self, bits: int) -> int:
        """qmax, the largest integer level; 1 for float."""
        levels = self.levels(bits)
        return 1 if levels is None else levels[1]

    def rows(self, values: Tensor, bits: Sequence[int]) -> Tensor:
        """The rows of ``values`` (widths, channels) that belong to ``bits``."""
        if self.bits == tuple(bits):
            return values
        if len(bits) == 1:
            return values.narrow(0, self.bits.index(bits[0]), 1)
        places = [self.bits.index(b) for b in bits]
        return values.index_select(0, indices(places, values.device))

    def per_width(self) -> nn.Parameter:
        """Ones (widths, channels), trained unless float is the only width.

        A parameter that takes part in no forward would stop DDP.
        """
        trained = any(b != 32 for b in self.bits)
        ones = torch.ones(len(self.bits), self.channels)
        return nn.Parameter(ones, requires_grad=trained)

    def of_widths(self) -> dict[str, Tensor]:
        """Parameters and buffers with a row for every width, by name."""
        return dict(self._parameters)

    def select(self, bits: int) -> None:
        """Keeps what belongs to one width only."""
        for name, tensor in self.of_widths().items():
            row = self.rows(tensor.detach(), (bits,)).clone()
            if isinstance(tensor, nn.Parameter):
                trained = tensor.requires_grad and bits != 32
                row = nn.Parameter(row, requires_grad=trained)
            setattr(self, name, row)
        self.bits = (bits,)
        self.sync_host()


def _note_widths(module: Quantizer, state: dict, prefix: str, metadata: dict) -> None:
    """Says in a state dict which width each row of the parameters belongs to."""
    metadata['bits'] = list(module.bits)


def per_subnet(model: nn.Module) -> list[Quantizer]:
    """The quantizers whose statistics are those of one subnet."""
    return [m for m in model.modules() if isinstance(m, Quantizer) and m.per_subnet]


def indices(values: Sequence[int], device: torch.device) -> Tensor:
    """A tensor to index with, copied to the device only once."""
    return _indices(tuple(values), device)


@lru_cache(maxsize=4096)
def _indices(values: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


def constant(values: Sequence[float], like: Tensor) -> Tensor:
    """A float32 tensor of numbers on the device of ``like``, copied there only once."""
    return floats(tuple(map(float, values)), like.device)
