"""Which widths of a net a vendor's tool takes, and which it gets in their place."""

from collections.abc import Mapping

from mmmpq.costs.hardware import Hardware
from mmmpq.costs.layer_types import layer_type
from mmmpq.layers.base import QuantLayer
from mmmpq.policy import SKIP, Precision, some_of


def fitted(
    layers: Mapping[str, QuantLayer], profile: str, kind: str, round_up: bool = False
) -> dict[str, Precision]:
    """The precision of every layer, as a vendor's file will say it.

    Args:
        layers: By name; those of skipped blocks are left out.
        profile: Of :data:`mmmpq.costs.hardware.PROFILES`, whose precisions are taken.
        kind: Name of the format, for the message of an error.
        round_up: Whether a precision that it lacks becomes the least that has no
            fewer bits, rather than an error. Weights keep their integers and scales, so
            that they stay what they are; inputs get more levels in the same range.

    Raises:
        ValueError: It lacks a precision; layer, precision and what is accepted
            are named.
    """
    hardware, precisions = Hardware.load(profile), {}
    for name, layer in layers.items():
        precision = layer.precision
        if precision == SKIP:
            continue
        type_ = layer_type(layer) or type(layer).__name__
        least = hardware.least(type_, precision)
        if least is None or (least != precision and not round_up):
            accepted = some_of(list(map(str, hardware.allowed(type_))), 8) or 'none'
            hint = '' if least is None else f'; --round-up makes it {least}'
            raise ValueError(
                f'{kind}: {name}: found {precision}; accepted for {type_} are '
                f'{accepted}{hint}'
            )
        precisions[name] = least
    return precisions


def rounded(
    layers: Mapping[str, QuantLayer], precisions: Mapping[str, Precision]
) -> list[str]:
    """Layers whose precision is another in the file, for a note."""
    return [
        f'{name} ({layers[name].precision} as {precision})'
        for name, precision in precisions.items()
        if precision != layers[name].precision
    ]
