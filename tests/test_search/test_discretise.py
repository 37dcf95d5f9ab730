"""From probabilities to a policy: never above a budget, and what is left well spent."""

import numpy as np
import pytest
import torch

from mmmpq.search import measure_gains, most_probable, spend
from mmmpq.search.discretise import upgrades

BUDGETS = {
    'tight': [('BOPs', dict(of='W2A2', ratio=1.02))],
    'W3A3': [('BOPs', 'W3A3')],
    'loose': [('BOPs', 'W8A8')],
    'bytes': [('WeightBytes', dict(of='W4A4', ratio=0.9))],
    'both': [('BOPs', 'W3A3'), ('WeightBytes', dict(of='W3A3', ratio=0.9))],
}


def check(tables, policy):
    for table in tables:
        assert table.of(policy) <= table.limit


@pytest.mark.parametrize('budgets', BUDGETS.values(), ids=list(BUDGETS))
def test_no_policy_is_ever_above_a_budget(problem, budgets):
    """20 seeds, each with and without what is left spent by random gains."""
    _, space, tables = problem(*budgets)
    for seed in range(20):
        random = np.random.default_rng(seed)
        with torch.no_grad():
            for logits in space.logits:
                logits.copy_(torch.tensor(random.normal(0, 3, logits.shape)))
        choice = most_probable(space, tables)
        check(tables, space.policy(choice))
        before = [t.of(space.policy(choice)) for t in tables]
        for _ in range(4):
            gains = [random.normal(0, 1, n) for n in space.sizes]
            for g, j in enumerate(choice):
                gains[g][j] = 0
            better = spend(choice, gains, tables)
            policy = space.policy(better)
            check(tables, policy)
            after = [t.of(policy) for t in tables]
            assert all(a >= b for a, b in zip(after, before, strict=True))
            for g, (old, new) in enumerate(zip(choice, better, strict=True)):
                assert old == new or gains[g][new] > 0
            choice, before = better, after


def test_the_most_likely_candidates_win_where_the_budget_allows(problem):
    _, space, tables = problem(('BOPs', 'W8A8'))
    with torch.no_grad():
        for g, logits in enumerate(space.logits):
            logits[g] = 1.0
    assert most_probable(space, tables) == [0, 1, 2, 3]


def test_without_a_budget_it_is_the_argmax(problem):
    _, space, tables = problem()
    random = np.random.default_rng(0)
    with torch.no_grad():
        for logits in space.logits:
            logits.copy_(torch.tensor(random.normal(0, 1, logits.shape)))
    assert not tables
    assert most_probable(space, tables) == [int(p.argmax()) for p in space.logits]


def test_spend_takes_the_best_of_what_fits(problem):
    _, space, (table,) = problem(('BOPs', 'W3A3'))
    choice = [0] * 4
    gains = [np.zeros(7) for _ in choice]
    left = table.limit - table.of(space.policy(choice))
    gains[1][3], gains[2][3], gains[3][3] = 0.5, 0.3, -1.0
    fits = [float(v[3] - v[0]) for v in table.values]
    assert sum(fits[1:3]) <= left  # W3A3 in all groups fits by definition
    assert spend(choice, gains, [table]) == [0, 3, 3, 0]
    gains[1][6] = 99.0
    assert float(table.values[1][6] - table.values[1][0]) > left
    assert spend(choice, gains, [table]) == [0, 3, 3, 0]


def test_spend_does_not_save_under_one_budget_to_pay_under_another(problem):
    _, _, tables = problem(('BOPs', 'W8A8'), ('WeightBytes', 'W8A8'))
    choice = [1] * 4  # W2A8
    gains = [np.zeros(7) for _ in choice]
    gains[0][2] = 5.0  # W8A2: as many BOPs, more bytes
    gains[1][3] = 5.0  # W3A3: fewer BOPs
    assert spend(choice, gains, tables) == [2, 1, 1, 1]


def test_gains_are_measured_one_group_at_a_time(problem):
    _, space, (table,) = problem(('BOPs', 'W3A3'))
    tried = []

    def loss_of(choice):
        tried.append(list(choice))
        return 10.0 - sum(choice)

    start = [0, 0, 0, 0]
    gains = measure_gains(space, start, [table], loss_of)
    moves = upgrades(space, start, [table])
    assert tried[0] == start and len(moves) == len(tried) - 1
    for g, gain in enumerate(gains):
        for j, value in enumerate(gain):
            moved = [0] * 4
            moved[g] = j
            fits = table.of(space.policy(moved)) <= table.limit
            dearer = table.values[g][j] > table.values[g][0]
            assert value == (j if fits and dearer else 0)
            assert (moved in tried[1:]) == bool(fits and dearer)


def test_of_many_upgrades_each_group_has_its_dearest(problem):
    _, space, tables = problem(('BOPs', 'W8A8'))
    start = [0] * 4
    every = upgrades(space, start, tables)
    assert len(every) > 8
    few = upgrades(space, start, tables, 8)
    assert len(few) <= 8 and set(few) < set(every)
    for g in range(4):
        costs = tables[0].values[g]
        dearest = max(costs[j] for h, j in every if h == g)
        assert max(costs[j] for h, j in few if h == g) == dearest
    assert upgrades(space, start, tables, len(every)) == every
