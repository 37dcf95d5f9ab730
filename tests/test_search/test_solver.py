"""The knapsack solver against brute force, and budgets that bind exactly."""

import random
import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmmpq.models import quantize
from mmmpq.search import Problem, SearchSpace, solve


def totals(values):
    """Sums of one number per group, of all choices, added from first to last."""
    found = np.zeros(1)
    for each in values:
        found = (found[:, None] + np.asarray(each, float)).reshape(-1)
    return found


def brute_force(scores, costs, limits):
    """The best score inside all limits; None if nothing is."""
    pairs = zip(costs, limits, strict=True)
    inside = np.all([totals(cost) <= limit for cost, limit in pairs], axis=0)
    return totals(scores)[inside].max() if inside.any() else None


def check(scores, costs, limits):
    best = brute_force(scores, costs, limits)
    if best is None:
        with pytest.raises(ValueError, match='no choice of candidates meets all'):
            solve(scores, costs, limits)
        return
    choice = solve(scores, costs, limits)
    assert sum(s[j] for s, j in zip(scores, choice, strict=True)) == pytest.approx(best)
    for cost, limit in zip(costs, limits, strict=True):
        assert sum(float(cost[g][j]) for g, j in enumerate(choice)) <= limit


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
    check(scores, costs, limits)


@pytest.mark.parametrize('part', range(5))
def test_costs_over_six_decades(part):
    """Half of the limits are the cost of a choice, which the best one may spend."""
    for seed in range(80 * part, 80 * part + 80):
        random = np.random.default_rng(seed)
        sizes = random.integers(2, 6, random.integers(2, 7))
        scores = [np.log(random.dirichlet(np.ones(m)).clip(1e-12)) for m in sizes]
        costs = [
            [10 ** random.uniform(0, 6) * random.uniform(1, 8, m) for m in sizes]
            for _ in range(random.integers(1, 3))
        ]
        ends = [np.array([[c.min(), c.max()] for c in cost]).sum(0) for cost in costs]
        share = random.random() ** 3
        limits = [low + (high - low) * share for low, high in ends]
        if seed % 2:
            wanted = random.integers(0, sizes)
            limits = [
                sum(float(c[j]) for c, j in zip(cost, wanted, strict=True))
                for cost in costs
            ]
        check(scores, costs, limits)


def test_a_choice_over_the_bound_is_excluded():
    """Four groups cost next to nothing beside the fifth: three of them may be dear."""
    costs = [*[np.array([0.0, 1.0])] * 4, np.array([0.0, 1e9])]
    scores = [*[np.array([0.0, 1.0])] * 4, np.array([0.0, 9.0])]
    assert sum(solve(scores, [costs], [1e9 + 3])) == 4
    assert solve(scores, [costs], [1e9]) == [0, 0, 0, 0, 1]
    assert solve(scores, [costs], [1e9 - 1]) == [1, 1, 1, 1, 0]


@pytest.mark.parametrize('unit', [1e-9, 1, 1e9])
def test_scores_of_any_unit(unit):
    costs = [np.array([0.0, 1.0])] * 6
    scores = [np.array([0.0, 1 + g / 10]) * unit for g in range(6)]
    assert solve(scores, [costs], [2]) == [0, 0, 0, 0, 1, 1]


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


@pytest.mark.parametrize('count', [1, 2])
def test_a_thousand_groups(count):
    """Of them the best, not one within a share of it."""
    random = np.random.default_rng(1)
    scores = [np.log(random.dirichlet(np.ones(11))) for _ in range(1000)]
    costs = [[np.sort(random.random(11)) * 1e9 for _ in scores] for _ in range(count)]
    limits = [0.25 * sum(c.max() for c in cost) for cost in costs]
    began = time.perf_counter()
    choice = solve(scores, costs, limits)
    assert time.perf_counter() - began < 10
    for cost, limit in zip(costs, limits, strict=True):
        assert sum(cost[g][j] for g, j in enumerate(choice)) <= limit
    if count == 1:  # the Lagrangian bound is an upper one
        bound = min(
            sum((s - w * c).max() for s, c in zip(scores, costs[0], strict=True))
            + w * limits[0]
            for w in np.linspace(0, 2e-8, 400)
        )
        found = sum(s[j] for s, j in zip(scores, choice, strict=True))
        assert bound - 0.04 < found <= bound


@pytest.mark.parametrize('groups', [20, 60])
def test_equal_scores_do_not_take_for_ever(groups):
    """Where only what is spent decides it is the subset-sum problem."""
    rng = np.random.default_rng(0)
    products = [4, 6, 9, 12, 16, 24, 36, 64]
    macs = 10 ** rng.uniform(5, 7.5, groups)
    costs = [np.array([float(p * int(m)) for p in products]) for m in macs]
    limit = float(sum(16 * int(m) for m in macs))
    scores = [0.01 * c / limit for c in costs]
    choice = solve(scores, [costs], [limit])
    spent = sum(c[j] for c, j in zip(costs, choice, strict=True))
    assert 0.9999 * limit < spent <= limit


@pytest.mark.parametrize('seed', [2, 16])  # HiGHS 1.12 writes for these
def test_the_solver_writes_nothing(seed, capfd):
    rng = np.random.default_rng(seed)
    costs = [np.sort(rng.random(15)) * rng.random() for _ in range(50)]
    scores = [np.log(cost + 0.01) + 0.1 * rng.random(15) for cost in costs]
    print('before')
    solve(scores, [costs], [sum(cost.mean() for cost in costs)])
    print('after')
    assert capfd.readouterr() == ('before\nafter\n', '')


def test_no_budget_is_broken_in_random_nets_with_candidates_by_pattern():
    """1,000 random supernets, candidates of their layers, logits and budgets."""
    rng = random.Random(0)
    widths = [(w, a) for w in (2, 3, 4, 6, 8) for a in (2, 3, 4, 6, 8)]
    broken = refused = 0
    for seed in range(10):
        torch.manual_seed(seed)
        sizes = [3, *(rng.choice([4, 8, 12]) for _ in range(5))]
        net = nn.Sequential(
            *(
                nn.Conv2d(i, o, rng.choice([1, 3]), padding=1)
                for i, o in pairwise(sizes)
            )
        )
        patterns = {'*': rng.sample(widths, 6)}
        patterns |= {str(k): rng.sample(widths, rng.randint(1, 4)) for k in (0, 2, 4)}
        model = quantize(net, candidates=patterns, groups='layer')
        space = SearchSpace(model)
        for _ in range(100):
            for group in space.groups:
                group.relaxation.logits.data.normal_(0, 3)
            budgets = [
                dict(type=kind, limit=dict(of=f'W{w}A{a}', ratio=rng.uniform(0.7, 1.3)))
                for kind in rng.sample(['BOPs', 'WeightBytes'], rng.randint(1, 2))
                for w, a in [rng.choice(widths)]
            ]
            try:
                problem = Problem(
                    model, [dict(b, input_shape=(3, 8, 8)) for b in budgets],
                    space=space, log=lambda _: None,
                )  # fmt: skip
            except ValueError as error:
                assert 'cannot be met' in str(error) or 'no choice' in str(error)
                refused += 1
                continue
            policy = problem.policy()
            for spent, table in zip(
                policy.meta['budgets'], problem.tables, strict=True
            ):
                broken += spent['cost'] > spent['limit']
                broken += table.of(policy) > table.limit
            for group in space.groups:
                assert policy.layers[group.layers[0]] in group.candidates
    assert broken == 0
    assert refused < 500
