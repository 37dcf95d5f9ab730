"""Sums over the choices of groups, and over those of pairs of groups."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mmmpq.costs import Cost, LayerProfile
from mmmpq.costs.feeds import Feed
from mmmpq.policy import Precision

Pairs = dict[tuple[int, int], np.ndarray]
# Of each layer its group and that group's candidates, or None and its one precision.
Options = dict[str, tuple[int | None, Sequence[Precision]]]


class Terms(list):
    """What a choice adds up to: a list of the value of every candidate (m,), by group.

    Args:
        values: That list.
        pairs: By (g, h), g < h: what the candidates of two groups add together (m, n).
    """

    def __init__(self, values: Iterable[np.ndarray], pairs: Pairs | None = None):
        super().__init__(np.asarray(v, float) for v in values)
        self.pairs: Pairs = pairs or {}
        self._beside: dict[int, list[tuple[int, np.ndarray]]] = {}
        for (g, h), together in self.pairs.items():
            self._beside.setdefault(g, []).append((h, together))
            self._beside.setdefault(h, []).append((g, together.T))

    def of(self, choice: Sequence[int]) -> float:
        """The sum of a choice."""
        single = sum(float(v[j]) for v, j in zip(self, choice, strict=True))
        pairs = self.pairs.items()
        return single + sum(float(t[choice[g], choice[h]]) for (g, h), t in pairs)

    def beside(self, choice: Sequence[int], g: int) -> np.ndarray:
        """The value of every candidate of group g, all others as in ``choice`` (m,):
        of the sum, all that depends on g."""
        others = self._beside.get(g, ())
        return self[g] + sum(together[:, choice[h]] for h, together in others)

    def scaled(self, factor: float) -> 'Terms':
        pairs = {key: factor * t for key, t in self.pairs.items()}
        return Terms([factor * v for v in self], pairs)


class PairCosts(NamedTuple):
    """What layers cost together, beyond what each one does by itself.

    Attributes:
        pairs: By (g, h), g < h: of the candidates of two groups (m, n).
        single: By group, of its candidates (m,): within it, and with fixed layers.
        constant: Between fixed and float layers.
    """

    pairs: Pairs
    single: dict[int, np.ndarray]
    constant: float


def pair_costs(
    cost: Cost,
    feeds: Iterable[Feed],
    profiles: Iterable[LayerProfile],
    options: Options,
) -> PairCosts:
    """Adds up what a cost says between layers.

    Args:
        cost: A cost.
        feeds: What the layers hand on.
        profiles: Of all layers.
        options: Of every layer.
    """
    layers = {p.name: p for p in profiles}
    pairs: Pairs = {}
    single: dict[int, np.ndarray] = {}
    constant = 0.0
    for feed in feeds:
        (g, firsts), (h, seconds) = options[feed.first], options[feed.second]
        ends = layers[feed.first], layers[feed.second]
        together = np.array(
            [[cost.between(feed, *ends, p, q) for q in seconds] for p in firsts]
        )
        if not together.any():
            continue
        if g is None and h is None:
            constant += float(together[0, 0])
        elif g == h:
            single[g] = single.get(g, 0) + together.diagonal()
        elif h is None:
            single[g] = single.get(g, 0) + together[:, 0]
        elif g is None:
            single[h] = single.get(h, 0) + together[0]
        else:
            key, together = ((g, h), together) if g < h else ((h, g), together.T)
            pairs[key] = pairs.get(key, 0) + together
    return PairCosts(pairs, single, constant)
