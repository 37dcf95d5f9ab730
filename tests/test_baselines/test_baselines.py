"""Choices without a gradient search, against all choices there are."""

from itertools import product

import numpy as np
import pytest

from mmmpq.baselines.choices import largest_uniform, least_harm, random_choice


def every_choice(space, tables):
    for choice in product(*map(range, space.sizes)):
        policy = space.policy(choice)
        if all(t.of(policy) <= t.limit for t in tables):
            yield list(choice)


@pytest.mark.parametrize('unit', [1e-9, 1.0, 1e9])
def test_least_harm_is_the_best_of_all(problem, unit):
    _, space, tables = problem(('BOPs', 'W3A3'), ('WeightBytes', 'W4A4'))
    rng = np.random.default_rng(0)
    harms = [unit * rng.random(n) for n in space.sizes]

    def harm(choice):
        return sum(h[j] for h, j in zip(harms, choice, strict=True))

    best = min(every_choice(space, tables), key=harm)
    assert least_harm(harms, tables) == best


def test_what_is_equal_spends_the_budget(problem):
    _, space, tables = problem(('BOPs', 'W8A8'))
    choice = least_harm([np.zeros(n) for n in space.sizes], tables)
    assert choice == [space.groups[0].candidates.index((8, 8))] * 4


@pytest.mark.parametrize(
    'budgets, expected',
    [
        ([('BOPs', 'W3A3')], (3, 3)),
        ([('BOPs', 'W4A4')], (4, 4)),
        ([('BOPs', 'W8A2')], (4, 4)),  # as dear as W2A8 and W8A2, and balanced
        ([('BOPs', 'W8A8')], (8, 8)),
        ([('BOPs', 'W8A8'), ('WeightBytes', 'W4A4')], (4, 8)),
    ],
)
def test_largest_uniform(problem, budgets, expected):
    _, space, tables = problem(*budgets)
    policy = largest_uniform(space, tables)
    (precision,) = {policy.layers[n] for g in space.groups for n in g.layers}
    assert precision == expected


def test_uniform_in_both_readings(problem):
    """With the ends at 8 bits, which are most of a tight budget, or at the width."""
    _, space, tables = problem(('BOPs', 'W3A3'), ends='searched')
    (table,) = tables
    kept = largest_uniform(space, tables)
    every = largest_uniform(space, tables, ends=True)
    assert kept.layers['convs.0'] == kept.layers['fc'] == (8, 8)
    assert kept.layers['twice'] == (3, 3)
    assert len(set(every.layers.values())) == 1
    assert every.layers['twice'] > (3, 3)
    assert table.of(every) <= table.limit == table.of(kept)


def test_no_uniform_precision_fits(problem):
    _, space, tables = problem(
        ('BOPs', 'W2A3'), ('WeightBytes', 'W2A2'), candidates=[(4, 4), (2, 8)]
    )
    with pytest.raises(ValueError, match='no uniform precision of W4A4, W2A8 is in'):
        largest_uniform(space, tables)


@pytest.mark.parametrize(
    'budgets',
    [
        [('BOPs', 'W3A3')],
        [('BOPs', 'W8A8'), ('WeightBytes', 'W3A3')],
        [('BOPs', '1 TBOPs')],
    ],
)
def test_random_choices_fit_and_spend(problem, budgets):
    _, space, tables = problem(*budgets)
    choices = [random_choice(tables, seed) for seed in range(20)]
    for choice in choices:
        costs = [t.of(space.policy(choice)) for t in tables]
        assert all(c <= t.limit for c, t in zip(costs, tables, strict=True))
        spent = [
            c >= 0.95 * min(t.limit, t.max) for c, t in zip(costs, tables, strict=True)
        ]
        assert any(spent)
    assert random_choice(tables, 3) == choices[3]
    if len(budgets) == 1 and budgets[0][1] == 'W3A3':
        assert len(set(map(tuple, choices))) > 5
