"""The probabilities of all groups: one by one, and all at once."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


class Probs(tuple):
    """Those of each group's candidates (m_g,), and what they are parts of.

    Args:
        flat: All of them (N,).
        padded: The same, a row a group, with zeros at the end (G, max m_g).
        sizes: The numbers m_g of candidates.
    """

    flat: Tensor
    padded: Tensor

    def __new__(cls, flat: Tensor, padded: Tensor, sizes: Sequence[int]) -> 'Probs':
        probs = super().__new__(cls, flat.split(list(sizes)))
        probs.flat, probs.padded = flat, padded
        return probs


def flat(probs: Sequence[Tensor]) -> Tensor:
    """The probabilities of all groups, one after the other (N,)."""
    return probs.flat if isinstance(probs, Probs) else torch.cat(list(probs))


def padded(probs: Sequence[Tensor]) -> Tensor:
    """The probabilities of all groups, a row each, padded with zeros (G, max m_g)."""
    if isinstance(probs, Probs):
        return probs.padded
    return pad_sequence(list(probs), batch_first=True)


def on_host(probs: Sequence[Tensor]) -> list[Tensor]:
    """The probabilities of each group on the host, in float64; read in one copy."""
    return list(flat(probs).detach().cpu().double().split([len(p) for p in probs]))
