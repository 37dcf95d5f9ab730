"""What hardware of :data:`mmmpq.costs.hardware.PROFILES` does with a layer.

By its data file, which names the sources: precisions by type of layer, zero points, and
scales for each output channel. What stands between layers is not looked at.
"""

from collections.abc import Iterator

import torch

from mmmpq.costs.hardware import PARTS, Hardware
from mmmpq.export.onnx.check.verdict import FLOAT, INTEGERS, REFUSED
from mmmpq.layers import QuantizedLayer
from mmmpq.policy import FLOAT as W32A32
from mmmpq.policy import Precision, some_of
from mmmpq.quantizers import Quantizer


def hardware_does(
    hardware: Hardware, kind: str, layer: QuantizedLayer | None, at: Precision
) -> tuple[str, str]:
    """What it does with a layer of that type at a precision, and why."""
    faults = []
    if layer is not None and at != W32A32:
        quantizers = layer.w_quantizer, layer.a_quantizer
        grids = [
            grid(quantizer, layer._latent_weight(), bits)
            for quantizer, bits in zip(quantizers, at, strict=True)
        ]
        counts = [scale.numel() for scale, _ in grids]
        shifted = [zero is not None and bool(zero.any()) for _, zero in grids]
        faults = list(faults_of(hardware, kind, counts, shifted))
    return verdict_on(
        hardware, kind, at, faults, 'it stays float' if layer is None else ''
    )


def verdict_on(
    hardware: Hardware, kind: str, at: Precision, faults: list[str], floating: str
) -> tuple[str, str]:
    """What it does, and why, where ``faults`` are known; ``floating``: why of float."""
    if not hardware.allows(kind, at):
        accepted = some_of(list(map(str, hardware.allowed(kind))), 8) or 'nothing'
        return (
            REFUSED,
            f'{at} is none of {accepted}, which {hardware.name} has for {kind}',
        )
    if at == W32A32:
        return FLOAT, floating or 'float is a precision of it'
    if 32 in at:
        return FLOAT, f'its {"weight" if at.w_bits == 32 else "input"} is float'
    return (REFUSED, '; '.join(faults)) if faults else (INTEGERS, '')


def faults_of(
    hardware: Hardware, kind: str, counts: list[int], shifted: list[bool]
) -> Iterator[str]:
    """What is wrong with scales and zero points, of weights and of inputs."""
    for part, wrong in zip(PARTS, shifted, strict=True):
        if wrong and part in hardware.symmetric:
            yield f"its {part[:-1]}'s zero point is not 0"
    if (
        counts[0] > 1
        and hardware.per_channel != 'any'
        and kind not in hardware.per_channel
    ):
        yield f'its weight has {counts[0]} scales; accepted is one for {kind}'
    if counts[1] > 1:
        yield f'its input has {counts[1]} scales; accepted is one'


@torch.no_grad()
def grid(
    quantizer: Quantizer, weight: torch.Tensor, bits: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales and zero points, as far as they are known; (1,) and None of float."""
    if bits == 32 or not quantizer.calibrated:
        return weight.new_ones(1), None
    was_training, quantizer.training = quantizer.training, False
    values = weight if quantizer.target == 'weight' else weight.new_empty(0)
    scales, offsets = quantizer.grids(values, (bits,))
    quantizer.training = was_training
    return scales[0], None if offsets is None else offsets[0]
