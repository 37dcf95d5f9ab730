"""What of a net stays float whatever is chosen, and when that is worth a word."""

from collections.abc import Container, Sequence
from typing import Any

from mmmpq.costs.profile import LayerProfile

SAID = 0.2  # the share beyond which it is


def float_share(
    profiles: Sequence[LayerProfile], quantized: Container[str]
) -> dict[str, float]:
    """Shares, of all layers' ``bops`` and ``weights`` in float, of those that are not
    among ``quantized``."""
    left = [p for p in profiles if p.name not in quantized]
    return dict(
        bops=sum(p.macs for p in left) / max(sum(p.macs for p in profiles), 1),
        weights=sum(p.weights for p in left) / max(sum(p.weights for p in profiles), 1),
    )


def float_note(share: Any) -> str:
    """One line on more than a fifth, '' on less, and on what a file has instead."""
    match share:
        case {'bops': float(bops), 'weights': float(weights)}:
            if max(bops, weights) > SAID:
                return (
                    f'{bops:.0%} of the BOPs of the float net and {weights:.0%} of its '
                    'weights are of layers that stay float: every budget includes them'
                )
    return ''
