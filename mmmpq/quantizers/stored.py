"""Weights on a grid that is already known."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmmpq.quantizers.base import Quantizer
from mmmpq.quantizers.functional import Levels
from mmmpq.registry import QUANTIZERS


@QUANTIZERS.register_module()
class StoredQuantizer(Quantizer):
    """s * (clip(round(w / s + z), qmin, qmax) - z) with s and z as they were stored.

    It stands in for the quantizer that a net was fine-tuned with once its weights are
    given by integers: in a net from a packed checkpoint, and where a BatchNorm has been
    folded. Weights on the grid stay as they are, value for value; a quantizer whose
    step comes from the weights themselves would move them. Weights may be trained
    further, straight-through; step and zero point stay.

    Args:
        bits: The one width to serve, 1 to 8.
        target: 'weight'.
        channels: Not used; the shape of the grid comes with it.

    Raises:
        ValueError: The target is 'activation', or there is more than one width.
    """

    def __init__(
        self, bits: Sequence[int], target: str = 'weight', channels: int = 1
    ) -> None:
        super().__init__(bits, target)
        if target != 'weight' or len(self.bits) != 1:
            raise ValueError(
                'quantizer.type: StoredQuantizer is for weights at one width; found '
                f'the target {target!r} and {len(self.bits)} widths'
            )
        self.register_buffer('scale', torch.ones(()))
        self.register_buffer('zero', torch.zeros(()))
        # int32: gloo and NCCL broadcast no int16
        self.register_buffer('bounds', torch.zeros(2, dtype=torch.int32))

    def set_grid(self, scale: Tensor, zero: Tensor | None, levels: Levels) -> None:
        """Takes s and z, each () or (C_out, 1, ...), and (qmin, qmax)."""
        self.scale = scale.detach().clone()
        self.zero = torch.zeros_like(scale) if zero is None else zero.detach().clone()
        self.bounds.copy_(self.bounds.new_tensor(levels))
        self.set_sign(True)
        self.sync_host()

    def sync_host(self) -> None:
        super().sync_host()
        self._levels = tuple(self.bounds.tolist())
        self._offset = bool(self.zero.any())

    def levels(self, bits: int) -> Levels:
        return self._levels

    def scales(self, x: Tensor, bits: Sequence[int]) -> Tensor:
        return self.scale[None]

    def offsets(self, x: Tensor, bits: Sequence[int]) -> Tensor | None:
        return self.zero[None] if self._offset else None

    def calibrate(self, x: Tensor) -> None:
        raise ValueError(
            'quantizer.type: StoredQuantizer has no grid yet; it takes one from a '
            'packed checkpoint'
        )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        for name in ('scale', 'zero'):
            tensor = state_dict.get(prefix + name)
            if tensor is not None:
                like = getattr(self, name)
                setattr(self, name, like.new_zeros(tensor.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
