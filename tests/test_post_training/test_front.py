"""The cheapest net inside a limit, on planted fronts, against brute force."""

import random

import numpy as np
import pytest
from torch import nn

from mmmpq.models import quantize
from mmmpq.post_training.front import Drop, cheapest_inside, front, interval
from mmmpq.search import Problem


@pytest.mark.parametrize('seed', range(20))
def test_as_brute_force_finds_it(seed):
    rng = random.Random(seed)
    drops = sorted(
        (rng.expovariate(1) for _ in range(rng.randint(1, 15))), reverse=True
    )
    if seed % 2 and len(drops) > 2:  # two neighbours out of order
        i = rng.randrange(len(drops) - 1)
        drops[i], drops[i + 1] = drops[i + 1], drops[i]
    measured = []
    for limit in (0.0, 0.3, 1.0, 10.0):
        measured.clear()
        found = cheapest_inside(
            len(drops), lambda i: measured.append(i) or drops[i], limit
        )
        inside = [i for i, d in enumerate(drops) if d <= limit]
        assert found == (inside[0] if inside else None)
        assert len(measured) == len(set(measured))  # each once


def test_it_measures_few():
    measured = []
    found = cheapest_inside(1000, lambda i: measured.append(i) or 500 - i, 0)
    assert found == 500 and len(measured) < 15


def test_intervals():
    assert interval(0.5, 0.5, 10_000) == pytest.approx(1.96 * (0.5 / 10_000) ** 0.5)
    assert interval(1.0, 1.0, 100) == 0
    assert 'less than the test set can tell' in Drop(0.1, 0.8).statement(0.5)
    assert 'with 95 % certainty' in Drop(-1.0, 0.4).statement(0.5)
    assert 'may exceed' in Drop(0.4, 0.4).statement(0.5)


def test_a_front_rises_in_cost_and_keeps_all_budgets():
    net = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1) for _ in range(5)))
    model = quantize(net, groups='layer')
    found = Problem(model, ['W4A4', 'WeightBytes:W4A4'], (4, 16, 16))
    space, tables = found.space, found.tables
    rng = np.random.default_rng(0)
    harms = [np.sort(rng.random(n))[::-1] for n in space.sizes]
    limits = [t.limit for t in tables]
    choices = front(harms, tables, 6)
    assert [t.limit for t in tables] == limits
    costs = [[t.of(space.policy(c)) for c in choices] for t in tables]
    assert len(choices) > 2 and costs[0] == sorted(costs[0])
    assert max(costs[0]) <= limits[0] and max(costs[1]) <= limits[1]
    assert costs[0][0] < 1.01 * tables[0].min
