"""The knapsack solver against brute force, and budgets that bind exactly."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmmpq.search import solve


def brute_force(scores, costs, limits, allowed=None):
    best, found = -np.inf, None
    for choice in itertools.product(*(range(len(s)) for s in scores)):
        if allowed and not all(allowed[g][j] for g, j in enumerate(choice)):
            continue
        if any(
            sum(float(cost[g][j]) for g, j in enumerate(choice)) > limit
            for cost, limit in zip(costs, limits, strict=True)
        ):
            continue
        score = sum(scores[g][j] for g, j in enumerate(choice))
        if score > best:
            best, found = score, list(choice)
    return best, found


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 4), min_size=1, max_size=4),
    st.integers(1, 2),
    st.floats(0, 1),
    st.sampled_from([1, 1e3, 1e9]),
)
def test_agrees_with_brute_force(seed, sizes, budgets, tightness, unit):
    random = np.random.default_rng(seed)
    scores = [np.log(random.dirichlet(np.ones(m)).clip(1e-12)) for m in sizes]
    costs = [[random.integers(1, 99, m) * unit for m in sizes] for _ in range(budgets)]
    limits = [
        sum(float(c.min()) for c in cost) * (1 - tightness)
        + sum(float(c.max()) for c in cost) * tightness
        for cost in costs
    ]
    best, found = brute_force(scores, costs, limits)
    if found is None:
        with pytest.raises(ValueError, match='no choice of candidates meets all'):
            solve(scores, costs, limits)
        return
    choice = solve(scores, costs, limits)
    assert sum(scores[g][j] for g, j in enumerate(choice)) == pytest.approx(best)
    for cost, limit in zip(costs, limits, strict=True):
        assert sum(float(cost[g][j]) for g, j in enumerate(choice)) <= limit


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_an_optimum_on_the_bound_is_found(seed):
    random = np.random.default_rng(seed)
    costs = [random.integers(1, 50, 3) * 1e7 for _ in range(4)]
    wanted = random.integers(0, 3, 4)
    scores = [np.full(3, -5.0) for _ in range(4)]
    for g, j in enumerate(wanted):
        scores[g][j] = -1
    limit = sum(float(costs[g][j]) for g, j in enumerate(wanted))
    assert solve(scores, [costs], [limit]) == wanted.tolist()


def test_a_bound_missed_by_the_last_digit_holds():
    costs = [np.array([1.0, 2.0]), np.array([1.0, 2.0])]
    scores = [np.array([0.0, 1.0])] * 2
    assert solve(scores, [costs], [4.0]) == [1, 1]
    below = np.nextafter(4.0, 0)  # far inside the tolerance of the MILP
    assert sum(solve(scores, [costs], [below])) == 1


def test_only_one_choice_and_it_lies_on_the_bound():
    costs = [np.array([0.1, 5.0]), np.array([0.2, 5.0])]
    scores = [np.array([-9.0, 0.0])] * 2
    assert solve(scores, [costs], [0.1 + 0.2]) == [0, 0]


def test_masks_are_obeyed():
    scores = [np.array([3.0, 2.0, 1.0])] * 2
    costs = [[np.array([3.0, 2.0, 1.0])] * 2]
    masks = [np.array([False, True, True]), np.array([True, True, False])]
    assert solve(scores, costs, [5.0], masks) == [1, 0]
    assert solve(scores, costs, [4.0], masks) in ([1, 1], [2, 0])
    with pytest.raises(ValueError, match='no choice'):
        solve(scores, costs, [2.5], masks)


def test_many_groups_take_seconds_at_most():
    random = np.random.default_rng(0)
    scores = [np.log(random.dirichlet(np.ones(15))) for _ in range(100)]
    costs = [[np.sort(random.random(15)) * 1e9 for _ in scores] for _ in range(2)]
    limits = [0.4 * sum(c.max() for c in cost) for cost in costs]
    choice = solve(scores, costs, limits)
    for cost, limit in zip(costs, limits, strict=True):
        assert sum(cost[g][j] for g, j in enumerate(choice)) <= limit
