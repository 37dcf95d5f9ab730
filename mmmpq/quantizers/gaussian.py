"""The quantizers of EdMIPS: Gaussian weights, half-wave Gaussian activations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmmpq.quantizers.base import Quantizer, constant
from mmmpq.quantizers.functional import Levels
from mmmpq.registry import QUANTIZERS

# Step, by width, that minimises the squared error of a standard normal variable on the
# grid without a zero, and of its positive half on the positive levels 1 to 2^b - 1.
# Widths 1 to 4 are the published ones; 5 to 8 continue them, as a test derives.
GAUSSIAN = {1: 1.596, 2: 0.996, 3: 0.586, 4: 0.336}
GAUSSIAN |= {5: 0.1881, 6: 0.1041, 7: 0.0569, 8: 0.0308}
HALF_WAVE = {1: 0.799, 2: 0.538, 3: 0.3217, 4: 0.185}
HALF_WAVE |= {5: 0.1030, 6: 0.0566, 7: 0.0307, 8: 0.0165}


@QUANTIZERS.register_module()
class GaussianQuantizer(Quantizer):
    """Fixed grids that fit a normal distribution; nothing is learned.

    Weights, with s = c_b · std(W), unbiased, without a gradient of its own::

        Q(W) = (round(W / s + ½) - ½) · s, clamped to ±(2^(b-1) - ½) · s

    There is no zero level, and the gradient is the identity. Activations::

        Q(x) = round(clamp(x, 0, s · (2^b - 1)) / s) · s

    with the steps s of a half-wave of variance 1, as behind a BatchNorm and a ReLU.
    Signed activations, which the paper does not have, take the grid of the weights.

    Source: Rethinking Differentiable Search for Mixed-Precision Neural Networks, 2020,
    arXiv 2004.05795.

    Args:
        bits: The widths to serve, 1 to 8 and 32.
        target: 'weight' or 'activation'.
        normalised: The inputs have the variance that the constants assume. False
            multiplies the steps by what is measured in calibration (ours), for layers
            without a BatchNorm before them. Signed inputs are always measured.
        channels: Output channels of the layer; not used.

    Raises:
        ValueError: 16 bits are asked for.
    """

    def __init__(
        self,
        bits: Sequence[int],
        target: str,
        normalised: bool = True,
        channels: int = 1,
    ) -> None:
        super().__init__(bits, target)
        if 16 in bits:
            raise ValueError(
                'candidates: GaussianQuantizer has constants for 1 to 8 bits; found 16'
            )
        self.normalised = normalised
        if target == 'weight':
            self.set_sign(True)
        else:
            self.register_buffer('spread', torch.ones(()))

    @property
    def gradient(self) -> str:
        return 'identity' if self.target == 'weight' else 'lsq'

    def levels(self, bits: int) -> Levels:
        if bits == 32:
            return None
        if self._signed:
            return 1 - 2 ** (bits - 1), 2 ** (bits - 1)
        return 0, 2**bits - 1

    def calibrate(self, x: Tensor) -> None:
        """Finds the sign, and the spread of the normal variable behind ``x``."""
        x = self.calibration_rows(x)
        if x is None or self.target == 'weight':
            return
        if self._signed:
            self.spread.copy_(x.std(correction=0))
        elif not self.normalised:  # half of the squares is cut off
            self.spread.copy_((2 * x.square().mean()).sqrt())

    def scales(self, x: Tensor, bits: Sequence[int]) -> Tensor:
        """c_b · std of the widths ``bits`` (m,)."""
        table = GAUSSIAN if self._signed else HALF_WAVE
        steps = constant([table.get(b, 1.0) for b in bits], x)
        if self.target == 'activation':
            return steps * self.spread
        x = x.detach().float()
        return steps * x.std(correction=int(x.numel() > 1)).clamp_min(1e-8)

    def offsets(self, x: Tensor, bits: Sequence[int]) -> Tensor | None:
        return constant([0.5] * len(bits), x) if self._signed else None
