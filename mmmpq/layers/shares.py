"""What the layers of a group mix their candidates with."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmmpq.layers.relaxation import Relaxation
from mmmpq.quantizers.base import constant, indices


class Shares:
    """The coefficients of a group of m candidates, for its layers and their block.

    Args:
        relaxation: Of the group.
        block: The mixture, or the sampled path, of a block and its skip (m,).
        layers: :attr:`layers`, where they are there already.
        marginals: Of ``layers``, where they are there already.
        stamp: Of the relaxation, where these are handed to its layers for a step.
    """

    def __init__(
        self,
        relaxation: Relaxation,
        block: Tensor,
        layers: Tensor | None = None,
        marginals: tuple[Tensor, Tensor] | None = None,
        stamp: tuple = (),
    ) -> None:
        self.relaxation = relaxation
        self.block = block
        self.stamp = stamp
        self._layers, self._marginals = layers, marginals

    @property
    def layers(self) -> Tensor:
        """Coefficients that the layers mix with (m,): those without skip's."""
        if self._layers is None:
            relaxation, self._layers = self.relaxation, self.block
            if relaxation.skip is not None:
                others = [j != relaxation.skip for j in range(len(self.block))]
                others = constant(others, self.block)
                self._layers = without_skip(self.block, relaxation.probs(), others)
        return self._layers

    @property
    def marginals(self) -> tuple[Tensor, Tensor]:
        """Coefficients of the widths: of ``w_bits`` and of ``a_bits``."""
        if self._marginals is None:
            self._marginals = self.relaxation.marginals(self.layers)
        return self._marginals

    def __deepcopy__(self, memo: dict) -> 'Shares':
        return self  # a copied relaxation has another stamp, and so no use for it


def shares(relaxation: Relaxation, sampled: bool) -> Shares:
    """What a layer mixes with now: what it was handed if that holds, or computed.

    Args:
        relaxation: Of the layer's group.
        sampled: Whether it takes the path that was drawn, or the mixture.
    """
    handed = relaxation.handed.get(sampled)
    if handed is not None and handed.stamp == relaxation.stamp(sampled):
        return handed
    return Shares(relaxation, relaxation.path() if sampled else relaxation.mixture())


def without_skip(block: Tensor, probs: Tensor, others: Tensor) -> Tensor:
    """b_j / (1 - b_0), and 0 for skip: the coefficients of a block's layers (..., m).

    Where b_0 = 1, as on a sampled path, they are the most probable other candidate's.

    Args:
        block: b, coefficients of the block (..., m).
        probs: Probabilities of the candidates (..., m).
        others: 0 for skip, 1 for the others (..., m).
    """
    rest = block * others
    total = rest.sum(-1, keepdim=True)
    with torch.no_grad():
        # Not skip, even where all others have underflowed to 0.
        likeliest = torch.where(others > 0, probs, -1).argmax(-1, keepdim=True)
        likeliest = torch.zeros_like(rest).scatter_(-1, likeliest, 1)
    return torch.where(total > 1e-30, rest / total.clamp_min(1e-30), likeliest)


def select(probs: Tensor, places: Sequence[int]) -> Tensor:
    """The coefficients of some of the candidates."""
    return probs.index_select(0, indices(places, probs.device))
