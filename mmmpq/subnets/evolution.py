"""The Pareto front of predicted accuracy against cost, by NSGA-II."""

from collections.abc import Callable, Sequence

import numpy as np

from mmmpq.subnets.code import Codes


class NoneInsideError(ValueError):
    """No subnet inside the budgets was found."""


def evolve(
    sizes: Sequence[int],
    predict: Callable[[Codes], np.ndarray],
    costs: Callable[[Codes], np.ndarray],
    limits: Sequence[Sequence[float]] = (),
    minimise: Sequence[int] = (0,),
    population: int = 500,
    generations: int = 1000,
    seed: int = 0,
    start: Codes | None = None,
    repair: Callable[[Codes], Codes] | None = None,
    step: Callable[[int], None] | None = None,
) -> Codes:
    """Subnets of which no other is both better and cheaper, inside the budgets.

    NSGA-II (A fast and elitist multiobjective genetic algorithm: NSGA-II, 2002), as in
    BatchQuant: Quantized-for-all Architecture Search with Robust Quantizer, 2021,
    arXiv 2105.08952, from which population and generations are. Genes are crossed
    uniformly and mutated with probability 1 / G; :func:`spread` starts it. These are
    ours, and so are the limits, which NSGA-II takes as constraints.

    Args:
        sizes: How many values each of the G genes may take.
        predict: From genes to what is to be maximised (n,).
        costs: From genes to the k costs (n, k).
        limits: Budgets (k,), inf where a cost has no bound: a subnet is inside if it
            costs no more than one of them.
        minimise: Indices of the costs that are objectives.
        population: Subnets a generation.
        generations: How many.
        seed: The same front comes out for the same seed.
        start: Subnets (n, G) that are in the first generation, such as uniform ones.
        repair: Gives genes without effect one value, so that a net is met once.
        step: Called with the number of each generation.

    Returns:
        Codes (n, G) in ascending order of the first objective cost.

    Raises:
        NoneInsideError: No subnet inside the budgets was found.
        ModuleNotFoundError: pymoo is missing.
    """
    nsga2, minimize, problem_class, crossover, mutation, repairing = import_pymoo()
    sizes = np.asarray(sizes)
    repair = repair or (lambda x: x)

    class Problem(problem_class):
        def _evaluate(self, x, out, *args, **kwargs):
            cost = costs(x)
            out['F'] = np.column_stack([-predict(x), cost[:, list(minimise)]])
            if len(limits):
                out['G'] = excess(cost, limits)[:, None]

    class Mutation(mutation):
        def _do(self, problem, x, *args, random_state=None, **kwargs):
            new = random_state.integers(0, sizes, x.shape)
            changed = random_state.random(x.shape) < 1 / len(sizes)
            return np.where(changed, new, x)

    class Repair(repairing):
        def _do(self, problem, x, **kwargs):
            return repair(x)

    first = repair(_first(sizes, population, seed, start))
    result = minimize(
        Problem(
            n_var=len(sizes),
            n_obj=1 + len(minimise),
            n_ieq_constr=1 if len(limits) else 0,
            xl=0,
            xu=sizes - 1,
            vtype=int,
        ),
        nsga2(
            pop_size=population,
            sampling=first,
            crossover=crossover(),
            mutation=Mutation(),
            repair=Repair(),
        ),
        ('n_gen', generations),
        seed=seed,
        callback=lambda algorithm: step and step(algorithm.n_gen),
    )
    if result.X is None:
        raise NoneInsideError(
            f'budgets: none of {population} x {generations} subnets is inside; allow '
            'more, or a larger budget'
        )
    front = distinct(np.atleast_2d(result.X).astype(np.int64))
    return front[np.lexsort((predict(front), costs(front)[:, minimise[0]]))]


def excess(costs: np.ndarray, limits: Sequence[Sequence[float]]) -> np.ndarray:
    """By which share each subnet is over the budget that it is nearest to.

    min over budgets b of max over costs k of cost_k / limit_bk - 1; inside is ≤ 0.

    Args:
        costs: (n, k).
        limits: For each budget its k bounds, inf where there is none.
    """
    over = [(costs / np.asarray(limit, np.float64)).max(1) - 1 for limit in limits]
    return np.min(over, axis=0)


def spread(sizes: Sequence[int], count: int, seed: int = 0) -> Codes:
    """Random genes (count, G) whose costs reach from the smallest net to the largest.

    Genes drawn uniformly have costs close to the mean of the space when there are many.
    So gene g of a subnet is floor(size_g · u^t) with u uniform in [0, 1) and for the
    whole subnet one t = exp(s), s uniform in [-1.5, 1.5); t = 1 is uniform. The first
    rows are the same whatever the count.
    """
    sizes = np.asarray(sizes)
    u = np.random.default_rng(seed).random((count, len(sizes) + 1))
    t = np.exp(3 * u[:, :1] - 1.5)
    return np.minimum((u[:, 1:] ** t * sizes).astype(np.int64), sizes - 1)


def distinct(genes: Codes) -> Codes:
    """Each row once, in the order in which they first appear."""
    first = np.unique(genes, axis=0, return_index=True)[1]
    return genes[np.sort(first)]


def nondominated(costs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Which of n points are on the Pareto front: a mask (n,).

    Args:
        costs: (n, k), to be small.
        scores: (n,), to be large.
    """
    points = np.column_stack([costs, -scores])
    no_worse = (points[:, None] <= points).all(2)
    better = (points[:, None] < points).any(2)
    return ~(no_worse & better).any(0)


def best_inside(
    scores: np.ndarray, costs: np.ndarray, limit: Sequence[float]
) -> int | None:
    """The point of the best score inside a budget, of equal ones the cheaper.

    Args:
        scores: (n,).
        costs: (n, k).
        limit: (k,), inf where there is none.
    """
    inside = np.flatnonzero(excess(costs, [limit]) <= 0)
    if not len(inside):
        return None
    share = (costs[inside] / limit).max(1)
    return int(inside[np.lexsort((share, -scores[inside]))[0]])


def pick(
    scores: np.ndarray,
    costs: np.ndarray,
    limits: Sequence[Sequence[float]],
    count: int,
) -> list[int]:
    """Points of a front: the best inside each budget, then an even spread of others.

    Args:
        scores: (n,).
        costs: (n, k), ascending in the cost that the spread is over.
        limits: Of each budget (k,).
        count: How many, if there are as many; at least one for each budget.
    """
    best = [best_inside(scores, costs, limit) for limit in limits]
    picks = list(dict.fromkeys(i for i in best if i is not None))
    others = [i for i in range(len(scores)) if i not in picks]
    even = np.linspace(0, len(others) - 1, min(max(0, count - len(picks)), len(others)))
    return sorted({*picks, *(others[int(i)] for i in even.round())})


def _first(sizes, population, seed, start) -> Codes:
    genes = np.empty((0, len(sizes)), np.int64) if start is None else start
    genes = genes[:population]
    return np.concatenate([genes, spread(sizes, population - len(genes), seed)])


def import_pymoo():
    """What is used of pymoo, which comes with the extra ``qfa``.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.mutation import Mutation
        from pymoo.core.problem import Problem
        from pymoo.core.repair import Repair
        from pymoo.operators.crossover.ux import UX
        from pymoo.optimize import minimize
    except ImportError as error:
        raise ModuleNotFoundError(
            'the evolutionary search needs pymoo: pip install "mmmpq[qfa]"'
        ) from error
    return NSGA2, minimize, Problem, UX, Mutation, Repair
