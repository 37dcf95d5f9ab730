"""From a trained predictor to the subnets that are worth measuring."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mmmpq.search.solver import solve
from mmmpq.subnets.budgets import SubnetBudgets
from mmmpq.subnets.code import Codes
from mmmpq.subnets.evolution import NoneInsideError, distinct, evolve, excess, pick
from mmmpq.subnets.predictor import LinearPredictor, Predictor
from mmmpq.subnets.space import Subnet


@dataclass
class Candidate:
    """A subnet that a search proposes.

    Attributes:
        kind: 'front', 'milp' or 'uniform'.
        name: Its number on the front, its budget, or its precision.
        subnet: Its genes.
        predicted: What the predictor expects of it.
    """

    kind: str
    name: str
    subnet: Subnet
    predicted: float


class SubnetSearch:
    """Proposes subnets inside budgets.

    Args:
        budgets: The budgets.
        predictor: Learned from measured subnets.
        population, generations, seed: Of :func:`mmmpq.subnets.evolution.evolve`.
        step: Called with the number of each generation of :meth:`front`.
    """

    def __init__(
        self,
        budgets: SubnetBudgets,
        predictor: Predictor,
        population: int = 500,
        generations: int = 1000,
        seed: int = 0,
        step: Callable[[int], None] | None = None,
    ) -> None:
        self.budgets, self.code, self.costs = budgets, budgets.code, budgets.costs
        self.predictor = predictor
        self.population, self.generations = population, generations
        self.seed, self.step = seed, step
        self.limits = list(budgets.limits.values())

    def front(self, count: int, start: Codes) -> list[Candidate]:
        """The best inside each budget and an even spread over the predicted front.

        Args:
            count: How many, if there are as many.
            start: Subnets (n, G) for the first generation, beside uniform ones.
        """
        first = np.concatenate([self._uniform(), start])
        genes = self._evolve(
            self.code.sizes, start=first, repair=self.code.canonical, step=self.step
        )
        return self._picked('front', genes, count)

    def uniform(self, count: int) -> list[Candidate]:
        """Nets with one precision everywhere, inside a budget, to compare with.

        With an elastic architecture those of matched widths are searched in the same
        way: the best in each budget, and an even spread; none where only mixed ones are
        found inside.
        """
        if not self.code.architecture:
            space = self.budgets.space
            genes = self.code.of([space.largest(p) for p in space.common])
            inside = excess(self.costs(genes), self.limits) <= 0
            return self._candidates('uniform', genes[inside])
        if not self.budgets.space.precisions:
            return []
        precisions = len(self.budgets.space.precisions)
        sizes = np.append(self.code.sizes[self.code.architecture], precisions)
        try:
            narrow = self._evolve(sizes, self._widened)
        except NoneInsideError:
            return []
        return self._picked('uniform', distinct(self._widened(narrow)), count)

    def milp(self, linear: LinearPredictor) -> list[Candidate]:
        """The optimum of a linear predictor inside each budget, by MILP.

        Of bits alone: with an elastic architecture costs are no sum over genes, and
        there are none.
        """
        if self.code.architecture:
            return []
        tables, constants = self.costs.linear()
        scores = np.split(linear.weights, np.cumsum(self.code.sizes)[:-1])
        candidates = []
        for name, limit in self.budgets.limits.items():
            bound = np.flatnonzero(np.isfinite(limit))
            choice = solve(
                scores,
                [tables[i] for i in bound],
                [float(limit[i] - constants[i]) for i in bound],
            )
            (candidate,) = self._candidates('milp', np.array([choice]))
            candidate.name = name
            candidates.append(candidate)
        return candidates

    def _evolve(self, sizes, widened=lambda genes: genes, **options) -> Codes:
        """Evolves genes of ``sizes``, of which ``widened`` makes those of the space."""
        return evolve(
            sizes,
            lambda genes: self._predict(widened(genes)),
            lambda genes: self.costs(widened(genes)),
            self.limits,
            self.budgets.minimise,
            *(self.population, self.generations, self.seed),
            **options,
        )

    def _predict(self, genes: Codes) -> np.ndarray:
        return self.predictor.predict(self.code.one_hot(genes))

    def _uniform(self) -> Codes:
        """The largest nets at one precision (p, G)."""
        space = self.budgets.space
        return self.code.of([space.largest(p) for p in space.precisions])

    def _widened(self, narrow: Codes) -> Codes:
        """From genes of the architecture and an index of a precision to all genes."""
        genes = self._uniform()[narrow[:, -1]]
        genes[:, self.code.architecture] = narrow[:, :-1]
        return self.code.canonical(genes)

    def _picked(self, kind: str, genes: Codes, count: int) -> list[Candidate]:
        picks = pick(self._predict(genes), self.costs(genes), self.limits, count)
        return self._candidates(kind, genes[picks])

    def _candidates(self, kind: str, genes: Codes) -> list[Candidate]:
        scores, subnets = self._predict(genes), self.code.subnets(genes)
        group = next(iter(self.budgets.space.groups), None)
        candidates = []
        for i, (subnet, score) in enumerate(zip(subnets, scores, strict=True)):
            name = f'{i:02d}'
            if kind == 'uniform':  # with an elastic architecture one of several
                number = f'_{name}' if self.code.architecture else ''
                name = f'{subnet[group]}{number}'
            candidates.append(Candidate(kind, name, subnet, float(score)))
        return candidates
