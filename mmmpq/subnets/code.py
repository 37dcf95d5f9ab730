"""Many subnets at once, as rows of whole numbers."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from mmmpq.subnets.space import Subnet, SubnetSpace

Codes = np.ndarray  # (n, G) int64: which of its values each gene takes


class GeneCode:
    """Subnets of a space as genes (n, G), in the order of ``space.genes``.

    Args:
        space: The space.

    Attributes:
        sizes: How many values each gene may take (G,).
    """

    def __init__(self, space: SubnetSpace) -> None:
        self.space = space
        self.names = list(space.genes)
        self.sizes = np.array([len(v) for v in space.genes.values()])
        self.architecture = [self.names.index(g) for g in space.architecture]
        self._idle = lru_cache(2**16)(self._idle_in)

    def of(self, subnets: Sequence[Subnet]) -> Codes:
        """The genes of subnets; JSON's pairs in place of precisions are all right."""
        rows = np.empty((len(subnets), len(self.names)), np.int64)
        for row, subnet in zip(rows, subnets, strict=True):
            self.space.check(subnet)
            for g, (name, values) in enumerate(self.space.genes.items()):
                value = subnet[name]
                row[g] = values.index(
                    tuple(value) if isinstance(value, list) else value
                )
        return rows

    def subnets(self, genes: Codes) -> list[Subnet]:
        every = self.space.genes.items()
        return [
            {name: values[j] for (name, values), j in zip(every, row, strict=True)}
            for row in genes.tolist()
        ]

    def idle(self, genes: Codes) -> np.ndarray:
        """Which genes (n, G) have no effect; only the architecture decides that."""
        mask = np.zeros(genes.shape, bool)
        if self.architecture:
            for row, flags in zip(genes, mask, strict=True):
                flags[:] = self._idle(tuple(row[self.architecture].tolist()))
        return mask

    def _idle_in(self, architecture: tuple[int, ...]) -> np.ndarray:
        genes = np.zeros((1, len(self.names)), np.int64)
        genes[0, self.architecture] = architecture
        idle = self.space.idle(self.subnets(genes)[0])
        return np.array([n in idle for n in self.names])

    def canonical(self, genes: Codes) -> Codes:
        """Genes without effect at their first value: a net has one code."""
        return np.where(self.idle(genes), 0, genes)

    def one_hot(self, genes: Codes) -> np.ndarray:
        """One-hot genes, float32 (n, Σ sizes), in the order of ``names``.

        A gene that has no effect, such as one of a layer that is left out, is all
        zeros: the same net has the same code.
        """
        starts = np.cumsum([0, *self.sizes[:-1]])
        code = np.zeros((len(genes), self.sizes.sum()), np.float32)
        np.put_along_axis(code, genes + starts, 1 - self.idle(genes), axis=1)
        return code
