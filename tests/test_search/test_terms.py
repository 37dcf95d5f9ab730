"""Costs between layers: the choice against brute force, the expected cost against the
sum over all choices, and the way into a budget."""

import itertools

import numpy as np
import pytest
import torch

from mmmpq.baselines import greedy
from mmmpq.baselines.choices import random_choice
from mmmpq.search import solve
from mmmpq.search.discretise import measure_gains, most_probable, spend, upgrades
from mmmpq.search.start import bias_logits, project
from mmmpq.search.terms import Terms

CANDIDATES = ['W2A2', 'W4A4', 'W8A8']


def random_terms(rng, sizes, unit=1.0):
    count = len(sizes)
    keys = [k for k in itertools.combinations(range(count), 2) if rng.random() < 0.5]
    pairs = {
        (g, h): rng.choice([-3, 0, 0, 7, 12], (sizes[g], sizes[h])) * unit
        for g, h in keys
    }
    return Terms([rng.integers(1, 40, m) * unit for m in sizes], pairs)


def choices(sizes):
    return list(itertools.product(*map(range, sizes)))


def test_a_sum_is_that_of_groups_and_pairs():
    pairs = {(0, 2): np.array([[1, 2], [3, 4.0]])}
    terms = Terms([[10, 20], [100.0], [1000, 2000]], pairs)
    assert terms.of([1, 0, 0]) == 20 + 100 + 1000 + 3
    assert terms.beside([1, 0, 0], 2).tolist() == [1003, 2004]
    assert terms.beside([1, 0, 1], 0).tolist() == [12, 24]
    assert terms.beside([1, 0, 1], 1).tolist() == [100]
    assert terms.scaled(-2).of([1, 0, 0]) == -2 * terms.of([1, 0, 0])


@pytest.mark.parametrize('part', range(5))
def test_the_choice_with_pairs_is_that_of_brute_force(part):
    """1,000 random problems: no budget is broken, no better choice is missed."""
    for seed in range(200 * part, 200 * part + 200):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 5, rng.integers(2, 5)).tolist()
        unit = 10.0 ** rng.integers(-3, 9)
        scores = [np.log(rng.dirichlet(np.ones(m)).clip(1e-12)) for m in sizes]
        costs = [random_terms(rng, sizes, unit) for _ in range(rng.integers(1, 3))]
        every = choices(sizes)
        spans = [np.array([cost.of(c) for c in every]) for cost in costs]
        limits = [float(np.quantile(s, rng.random() ** 2)) for s in spans]
        inside = np.all([s <= n for s, n in zip(spans, limits, strict=True)], 0)
        worth = np.array(
            [sum(s[j] for s, j in zip(scores, c, strict=True)) for c in every]
        )
        if not inside.any():
            with pytest.raises(ValueError, match='no choice'):
                solve(scores, costs, limits)
            continue
        choice = solve(scores, costs, limits)
        assert all(c.of(choice) <= n for c, n in zip(costs, limits, strict=True))
        best = worth[inside].max()
        assert worth[every.index(tuple(choice))] == pytest.approx(best, abs=1e-9)


def test_scores_may_have_pairs_too():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        sizes = [3, 2, 4]
        scores, cost = random_terms(rng, sizes), random_terms(rng, sizes)
        limit = float(np.median([cost.of(c) for c in choices(sizes)]))
        best = max(scores.of(c) for c in choices(sizes) if cost.of(c) <= limit)
        assert scores.of(solve(scores, [cost], [limit])) == pytest.approx(best)


@pytest.fixture
def changes(problem):
    return problem(('BOPsAndChanges', 'W4A4'), candidates=CANDIDATES, ends='searched')


def test_tables_cost_what_policies_cost(changes):
    _, space, (table,) = changes
    assert table.terms.pairs
    every = choices(space.sizes)
    costs = [table.constant + table.terms.of(c) for c in every]
    of = [table.of(space.policy(c)) for c in every]
    assert costs == pytest.approx(of, rel=1e-12)
    assert (table.min, table.max) == pytest.approx((min(of), max(of)), rel=1e-12)


def test_fixed_layers_and_layers_of_one_group_take_part(problem):
    _, space, (table,) = problem(
        ('BOPsAndChanges', 'W4A4'),
        candidates=CANDIDATES,
        groups=[['convs.1', 'convs.2']],
    )
    every = choices(space.sizes)
    costs = [table.constant + table.terms.of(c) for c in every]
    of = [table.of(space.policy(c)) for c in every]
    assert costs == pytest.approx(of, rel=1e-12)


def test_the_expected_cost_is_the_mean_over_all_choices(changes):
    _, space, tables = changes
    torch.manual_seed(0)
    probs = [torch.rand(m, dtype=torch.float64).softmax(0) for m in space.sizes]
    for p in probs:
        p.requires_grad_()
    wanted = sum(
        np.prod([float(p.detach()[j]) for p, j in zip(probs, c, strict=True)])
        * tables[0].of(space.policy(c))
        for c in choices(space.sizes)
    )
    expected = tables.expected(probs)[0]
    assert expected.item() == pytest.approx(wanted, rel=1e-12)
    assert tables[0].expected(probs).item() == pytest.approx(wanted, rel=1e-12)
    expected.backward()
    for g, p in enumerate(probs):  # E[B] is linear in each of them
        moved = [q.detach().clone() for q in probs]
        moved[g][0] += 0.5
        more = float(tables.expected(moved)[0] - expected.detach())
        assert more == pytest.approx(0.5 * float(p.grad[0]), rel=1e-9)


@pytest.mark.parametrize('ratio', [0.3, 0.6, 1.0])
@pytest.mark.parametrize('lead', ['bias', 'project'])
def test_logits_are_led_inside(problem, ratio, lead):
    """Also where the cheapest candidates of all groups do not fit each other."""
    limit = dict(of='W8A8', ratio=ratio)
    _, space, tables = problem(
        ('BOPsAndChanges', limit), candidates=CANDIDATES, ends='searched'
    )
    torch.manual_seed(1)
    for logits in space.logits:
        logits.data.normal_(0, 3)
    if lead == 'bias':
        bias_logits(space, tables)
    else:
        project(space, tables, [t.limit for t in tables])
    (expected,) = tables.expected(space.probs()).tolist()
    assert expected <= tables[0].limit
    assert tables[0].of(space.policy(most_probable(space, tables))) <= tables[0].limit


@pytest.mark.parametrize('ratio', [0.4, 0.7, 1.0])
def test_greedy_and_random_policies_keep_the_budget(problem, ratio):
    _, space, tables = problem(
        ('BOPsAndChanges', dict(of='W8A8', ratio=ratio)),
        candidates=CANDIDATES,
        ends='searched',
    )
    rng = np.random.default_rng(0)
    worth = [np.sort(rng.random(m)) for m in space.sizes]

    def loss_of(choice):
        return -sum(w[j] for w, j in zip(worth, choice, strict=True))

    tried = [greedy.choose(space, tables, loss_of)]
    tried += [random_choice(tables, seed) for seed in range(10)]
    for choice in tried:
        assert tables[0].of(space.policy(choice)) <= tables[0].limit


def test_what_is_left_is_spent_inside(changes):
    _, space, tables = changes
    choice = [0] * len(space.sizes)
    rng = np.random.default_rng(0)
    worth = [np.sort(rng.random(m)) for m in space.sizes]

    def loss_of(choice):
        return -sum(w[j] for w, j in zip(worth, choice, strict=True))

    moves = upgrades(space, choice, tables)
    assert moves
    for g, j in moves:
        moved = [*choice]
        moved[g] = j
        assert tables[0].of(space.policy(moved)) <= tables[0].limit
    better = spend(choice, measure_gains(space, choice, tables, loss_of), tables)
    assert loss_of(better) < loss_of(choice)
    assert tables[0].of(space.policy(better)) <= tables[0].limit
