"""Bits taken away step by step."""

import numpy as np
import pytest

from mmmpq.baselines import greedy


def separable(space, seed=0):
    """A loss that falls with cost: of every group its own."""
    rng = np.random.default_rng(seed)
    harms = [np.sort(rng.random(n))[::-1] for n in space.sizes]
    calls = []

    def loss_of(choice):
        calls.append(list(choice))
        return sum(float(h[j]) for h, j in zip(harms, choice, strict=True))

    return harms, loss_of, calls


@pytest.mark.parametrize(
    'budgets', [[('BOPs', 'W3A3')], [('BOPs', 'W4A4'), ('WeightBytes', 'W3A3')]]
)
def test_it_keeps_every_budget(problem, budgets):
    _, space, tables = problem(*budgets)
    _, loss_of, calls = separable(space)
    shares = []
    choice = greedy.choose(space, tables, loss_of, shares.append)
    policy = space.policy(choice)
    assert all(t.of(policy) <= t.limit for t in tables)
    assert shares[-1] == 1 and len(calls) < 4 * sum(space.sizes)


def test_each_step_is_the_best_one(problem):
    """Without laziness, where what a step loses does not depend on the others."""
    _, space, tables = problem(('BOPs', 'W3A3'))
    harms, loss_of, _ = separable(space)
    found = greedy.choose(space, tables, loss_of)
    (table,) = tables
    price = [v.numpy() / table.limit for v in table.values]
    order = [np.argsort(-p, kind='stable') for p in price]
    place = [0] * len(order)

    def now():
        return [int(o[i]) for o, i in zip(order, place, strict=True)]

    while table.of(space.policy(now())) > table.limit:
        rates = {}
        for g, o in enumerate(order):
            if place[g] + 1 < len(o):
                a, b = o[place[g]], o[place[g] + 1]
                saved = max(price[g][a] - price[g][b], 1e-12)
                rates[g] = (harms[g][b] - harms[g][a]) / saved
        place[min(rates, key=rates.get)] += 1
    assert found == now()


def test_nothing_to_take_away(problem):
    _, space, tables = problem(('BOPs', '1 TBOPs'))
    _, loss_of, calls = separable(space)
    choice = greedy.choose(space, tables, loss_of)
    assert choice == [int(np.argmax(v)) for v in tables[0].values]
    assert len(calls) == 1
