"""What a target will do with a net that is yet to be trained, width by width."""

from collections.abc import Sequence

import torch
from torch import nn

from mmmpq.costs import LayerProfile
from mmmpq.costs.bill import layer_choices
from mmmpq.costs.hardware import PROFILES, Hardware
from mmmpq.export.onnx import cut
from mmmpq.export.onnx.check.hardware import grid, hardware_does
from mmmpq.export.onnx.check.verdict import FLOAT, INTEGERS, REFUSED, Check, Verdict
from mmmpq.export.onnx.target import TARGETS, Target
from mmmpq.layers import QuantizedLayer, calibrating, quantized_layers
from mmmpq.policy import FLOAT as W32A32
from mmmpq.policy import SKIP, Precision, near
from mmmpq.randomness import isolated_randomness

FINN = 'finn'
CHECKED = *TARGETS, FINN, *PROFILES
FINN_SOURCES = (
    'FINN, Network Preparation: https://finn.readthedocs.io/en/latest/nw_prep.html',
    'FINN, transformations of QONNX: '
    'https://github.com/Xilinx/finn/tree/main/src/finn/transformation/qonnx',
    'QONNX, arXiv 2206.07527',
)
# Layers that FINN has hardware for.
FINN_TYPES = 'Conv2d', 'DepthwiseConv2d', 'ConvTranspose2d', 'Linear'
SIDE = 128  # pixels of the noise that a detector sees
Does = tuple[str, str]  # one of DOES, and why


def check_target(name: str) -> None:
    """Raises ValueError for what is none of :data:`CHECKED`."""
    if name not in CHECKED:
        raise ValueError(
            f'--target: found {name!r}; accepted are {", ".join(CHECKED)}; '
            + near(name, CHECKED)
        )


def check_net(
    model: nn.Module,
    target: str,
    profiles: Sequence[LayerProfile],
    input_shape: Sequence[int],
) -> Check:
    """What ``target`` does with each layer at each of its precisions.

    Of files that :command:`mmmpq export --target` writes. Whether inputs have a sign
    is seen on noise, which needs neither data nor training.

    Args:
        model: To be searched, or of fixed precisions.
        target: One of :data:`CHECKED`.
        profiles: What its layers compute, of :func:`mmmpq.costs.profile`.
        input_shape: (C, H, W) of an image.

    Raises:
        ValueError: There is no such target.
    """
    check_target(target)
    hardware = Hardware.load(target) if target in PROFILES else None
    runtime = Target.load(target) if target in TARGETS else None
    if runtime is None or runtime.type == 'int8':
        _see_noise(model, input_shape)
    layers, choices = quantized_layers(model), layer_choices(model, profiles)
    total = sum(layer.macs for layer in profiles) or 1
    verdicts, least, most = [], 0.0, 0.0
    for layer in profiles:
        groups: dict[Does, list[Precision]] = {}
        for precision in choices.get(layer.name, (W32A32,)):
            if precision == SKIP:
                continue
            module = layers.get(layer.name)
            if hardware:
                does = hardware_does(hardware, layer.type, module, precision)
            else:
                does = _does(runtime, layer.type, module, precision)
            groups.setdefault(does, []).append(precision)
        share = layer.macs / total
        integer = [does == INTEGERS for does, _ in groups]
        least += share * all(integer)
        most += share * any(integer)
        for (does, why), precisions in groups.items():
            quantized = layer.name in choices and precisions != [W32A32]
            verdicts.append(
                Verdict(
                    *(layer.name, layer.type, does, [why] if why else []),
                    quantized=quantized,
                    precisions=list(map(str, precisions)),
                    bops=share,
                )
            )
    rules = hardware or runtime
    sources = rules.sources if rules else FINN_SOURCES
    return Check(target, verdicts, sources, (least, most))


@torch.no_grad()
def _see_noise(model: nn.Module, input_shape: Sequence[int]) -> None:
    """Calibrates quantizers that are not; nets that cannot be cut are left."""
    try:
        side = SIDE if cut.takes_any_size(model) else max(input_shape)
    except ValueError:
        return
    channels, *sides = input_shape
    device = next(model.parameters()).device
    with isolated_randomness(), calibrating(model.eval()):
        size = [min(s, side) for s in sides]
        cut.network(model, torch.randn(2, channels, *size, device=device))


def _does(
    target: Target | None, kind: str, layer: QuantizedLayer | None, at: Precision
) -> Does:
    """Of one layer at one precision; ``target`` None is FINN."""
    name = FINN if target is None else target.name
    if layer is None or at == W32A32:
        why = 'it stays float' if layer is None else 'float is a precision of it'
        return (FLOAT, why) if target else (REFUSED, f'{why}: FINN has integers alone')
    if 32 in at:
        part = 'weight' if at.w_bits == 32 else 'input'
        return (FLOAT if target else REFUSED), f'its {part} is float'
    if at.a_bits > 8:
        return REFUSED, f'{name} has inputs of at most 8 bits'
    if target is None and kind not in FINN_TYPES:
        return REFUSED, f'FINN has no hardware for {kind}'
    if target is not None and _operator(kind) not in target.integers:
        return FLOAT, f'{name} computes {kind} in float'
    if target is None or target.type == 'int8':
        return _around_zero(target, layer, at)
    return INTEGERS, ''


def _around_zero(target: Target | None, layer: QuantizedLayer, at: Precision) -> Does:
    """Of a target whose zero points are 0."""
    weight, data = layer.w_quantizer, layer.a_quantizer
    for part, quantizer, bits in (('weight', weight, at[0]), ('input', data, at[1])):
        _, zero = grid(quantizer, layer._latent_weight(), bits)
        if zero is not None and zero.any():
            return REFUSED, f"its {part}'s zero point is not 0"
        low, high = quantizer.levels(bits)
        if target is not None and (low < -128 or high > 127):
            return REFUSED, (
                f'the {part} has {bits} bits from 0, levels that int8 lacks: accepted '
                'are at most 7 there'
            )
    return INTEGERS, ''


def _operator(kind: str) -> str:
    """That of ONNX for a layer type."""
    if 'Deform' in kind:
        return 'DeformConv'
    if 'ConvTranspose' in kind:
        return 'ConvTranspose'
    return 'Conv' if 'Conv' in kind else 'Gemm'
