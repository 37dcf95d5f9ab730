"""All penalties of a search as one objective."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmmpq.losses.expected_cost import Pricing
from mmmpq.registry import LOSSES, build


class Terms(NamedTuple):
    """What the penalties make of the task loss L: factor · L + penalty.

    Attributes:
        penalty: Σ of the penalties, a scalar.
        factor: Π of those that multiply, a scalar; the number 1.0 where none does.
        parts: Each of them by name.
    """

    penalty: Tensor
    factor: Tensor | float
    parts: dict[str, Tensor]


class Objective:
    """The penalties of a search; those with ``multiplies`` are factors of the loss.

    Args:
        penalties: Configs of penalties.
        key: That holds them, for the messages of errors.

    Attributes:
        names: Of the penalties; the second of a name is ``name_2``.
        tables: Of those that price the net themselves, from :meth:`bind` on.
    """

    def __init__(self, penalties: Sequence[dict], key: str = 'penalties') -> None:
        self.penalties = [
            build(LOSSES, p, f'{key}[{i}]') for i, p in enumerate(penalties)
        ]
        names = [p.name for p in self.penalties]
        self.names = [
            name if name not in names[:i] else f'{name}_{names[: i + 1].count(name)}'
            for i, name in enumerate(names)
        ]
        self.pricing = [p for p in self.penalties if hasattr(p, 'bind')]
        self.multiplies = any(map(_multiplies, self.penalties))
        self.tables: list[Any] = []

    def bind(self, pricing: Pricing) -> None:
        """Has the penalties price the net that need no budget."""
        for penalty in self.pricing:
            penalty.bind(pricing)
        self.tables = [p.table for p in self.pricing]

    def __call__(
        self, probs: Sequence[Tensor], ratios: Sequence[Tensor], progress: float
    ) -> Terms:
        """The terms, with the gradient of ``probs``.

        Args:
            probs: Probabilities of each group's candidates.
            ratios: E[B] / B of each budget, scalars; there may be none.
            progress: Share of the search that is done, 0 to 1.
        """
        stacked = torch.stack(list(ratios)) if ratios else probs[0].new_zeros(0)
        penalty, factor, parts = probs[0].new_zeros(()), 1.0, {}
        for name, each in zip(self.names, self.penalties, strict=True):
            parts[name] = value = each(probs, stacked.float(), progress)
            if _multiplies(each):
                factor = factor * value
            else:
                penalty = penalty + value
        return Terms(penalty, factor, parts)


def _multiplies(penalty: nn.Module) -> bool:
    return getattr(penalty, 'multiplies', False)
