"""NSGA-II against the front of a problem small enough to be enumerated."""

import itertools
import sys

import numpy as np
import pytest

from mmmpq.subnets.evolution import (
    best_inside,
    distinct,
    evolve,
    excess,
    nondominated,
    pick,
    spread,
)

SIZES = (4, 3, 5, 2, 4, 3, 4)
EVERY = np.array(list(itertools.product(*map(range, SIZES))))
RNG = np.random.default_rng(1)
GAINS = [np.sort(RNG.random(m)) for m in SIZES]
COSTS = [[np.sort(RNG.integers(1, 100, m)) for m in SIZES] for _ in range(2)]


def total(tables, genes):
    return sum(t[genes[:, g]] for g, t in enumerate(tables)).astype(float)


def score(genes):
    return total(GAINS, genes)


def costs(genes):
    return np.column_stack([total(c, genes) for c in COSTS])


def exact_front(limits=(), minimise=(0,)):
    """By sorting, of all 5,760 nets."""
    cost, value = costs(EVERY), score(EVERY)
    inside = np.ones(len(EVERY), bool)
    if limits:
        inside = np.any([(cost <= limit).all(1) for limit in limits], axis=0)
    front = []
    for i in np.flatnonzero(inside):
        c, v = cost[:, list(minimise)], value
        as_good = inside & (c <= c[i]).all(1) & (v >= v[i])
        if not (as_good & ((c < c[i]).any(1) | (v > v[i]))).any():
            front.append(tuple(EVERY[i]))
    return set(front)


@pytest.mark.parametrize('limits', [(), ([250, np.inf],), ([200, np.inf], [300, 260])])
def test_the_front_is_the_exact_one(limits):
    found = evolve(SIZES, score, costs, limits, population=120, generations=50)
    assert {tuple(g) for g in found} == exact_front(limits)
    assert (np.diff(costs(found)[:, 0]) >= 0).all()
    if limits:
        assert (excess(costs(found), limits) <= 0).all()


def test_two_costs_may_be_objectives():
    exact = exact_front([[260, 260]], (0, 1))
    found = evolve(
        SIZES, score, costs, [[260, 260]], (0, 1), population=200, generations=60
    )
    found = {tuple(g) for g in found}
    assert found <= exact and len(found) > 0.95 * min(200, len(exact))


def test_a_bound_that_only_the_smallest_net_meets():
    least = costs(np.zeros((1, 7), int))[0]
    found = evolve(SIZES, score, costs, [least], population=50, generations=60)
    assert found.tolist() == [[0] * 7]


def test_nothing_inside_is_an_error():
    with pytest.raises(ValueError, match='budgets: none of 20 x 3 subnets is inside'):
        evolve(SIZES, score, costs, [[1, 1]], population=20, generations=3)


def test_genes_without_effect_take_one_value():
    """Gene 1 counts only where gene 0 is not 0."""

    def repair(genes):
        return np.where((genes[:, :1] == 0) & (np.arange(7) == 1), 0, genes)

    def check(genes):
        assert np.array_equal(genes, repair(genes))
        return score(genes)

    found = evolve(SIZES, check, costs, population=60, generations=15, repair=repair)
    assert len(distinct(found)) == len(found)


def test_the_start_is_kept_the_seed_repeats_and_steps_are_told():
    best = np.array([[m - 1 for m in SIZES]])
    steps = []
    options = dict(population=10, generations=4, seed=5)
    one = evolve(SIZES, score, costs, start=best, step=steps.append, **options)
    same = evolve(SIZES, score, costs, start=best, **options)
    assert np.array_equal(one, same) and steps == [1, 2, 3, 4]
    assert tuple(best[0]) in {tuple(g) for g in one}


def test_random_genes_reach_from_small_to_large():
    sizes = [9] * 40
    mean = spread(sizes, 500).mean(1)
    assert mean.min() < 2 and mean.max() > 6  # uniform ones: 4 ± 0.4
    assert np.array_equal(spread(sizes, 100), spread(sizes, 500)[:100])
    found = spread(SIZES, 2000)
    assert (found.min(0) == 0).all() and (found.max(0) + 1 == SIZES).all()


def test_excess_is_of_the_nearest_budget():
    found = excess(np.array([[5.0, 9.0], [10.0, 1.0]]), [[10, np.inf], [4, 10]])
    np.testing.assert_allclose(found, [-0.5, 0])
    np.testing.assert_allclose(excess(np.array([[5.0, 9.0]]), [[4, 10]]), [0.25])


def test_nondominated_and_the_best_inside():
    points = np.array([[1.0], [2.0], [2.0], [3.0], [3.0]])
    scores = np.array([1.0, 3.0, 2.0, 3.0, 4.0])
    assert nondominated(points, scores).tolist() == [True, True, False, False, True]
    assert best_inside(scores, points, [2.5]) == 1
    assert best_inside(np.array([1, 3, 2, 3, 2]), points, [3.0]) == 1  # the cheaper
    assert best_inside(scores, points, [0.5]) is None


def test_what_is_measured_again():
    cost, scores = np.arange(100.0)[:, None], np.arange(100.0)
    found = pick(scores, cost, [[30.0], [70.0]], 6)
    assert {30, 70, 0, 99} <= set(found) and len(found) == 6
    assert pick(scores, cost, [[30.0], [70.0]], 1) == [30, 70]
    assert pick(scores[:3], cost[:3], [[30.0]], 9) == [0, 1, 2]


def test_without_pymoo(monkeypatch):
    monkeypatch.setitem(sys.modules, 'pymoo.optimize', None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "mmmpq\[qfa\]"'):
        evolve(SIZES, score, costs)
