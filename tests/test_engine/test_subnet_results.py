"""What is written where nothing that was measured is inside the target."""

import json

import numpy as np
import pytest
from torch import nn

from mmmpq.costs import Budget, ChipLatency, profile, total_cost
from mmmpq.models import quantize
from mmmpq.policy import Policy, Precision
from mmmpq.subnets.budgets import SubnetBudgets
from mmmpq.subnets.results import SubnetResults
from mmmpq.subnets.search import Candidate
from mmmpq.subnets.space import SubnetSpace


def test_nothing_inside_the_target_is_an_error_after_the_rest(tmp_path):
    net = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(4)))
    quant = dict(
        candidates=[(2, 2), (4, 4)], mixing='sampled', groups='layer', ends='fixed'
    )
    model = quantize(net, **quant)
    space = SubnetSpace(model)
    limits = {
        name: [Budget.build(dict(type='BOPs', limit=name, input_shape=(3, 8, 8)))]
        for name in ('W2A2', 'W4A4')
    }
    budgets = SubnetBudgets(model, space, limits)
    largest = Candidate('front', '00', space.largest(Precision(4, 4)), 1.0)
    found = [largest], [dict(top1=2.0)], np.array([2.0]), 'top1', {}, {}
    results = SubnetResults(space, budgets, *found)
    with pytest.raises(ValueError, match=r"--target-budget: none .* inside 'W2A2'"):
        results.write(tmp_path, 'W2A2')
    assert not (tmp_path / 'policy.json').exists()
    front = json.loads((tmp_path / 'front.json').read_text())
    assert front['budgets']['W2A2']['best'] is None
    assert (tmp_path / 'front.csv').exists() and (tmp_path / 'front.png').exists()
    results.write(tmp_path, 'W4A4')
    best = Policy.load(tmp_path / 'policy.json')
    assert best.layers == space.policy(largest.subnet).layers


def test_budgets_on_two_chips_are_two_costs():
    net = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(3)))
    quant = dict(candidates=[(4, 8), (8, 8)], mixing='sampled', groups='layer')
    model = quantize(net, **quant)
    space = SubnetSpace(model)
    limits = {
        chip: [
            Budget.build(
                dict(type='ChipLatency', chip=chip, limit='1 s', input_shape=(3, 8, 8))
            )
        ]
        for chip in ('bit_fusion', 'ne16')
    }
    budgets = SubnetBudgets(model, space, limits)
    subnet = space.largest()
    precisions = space.policy(subnet).layers
    for entry in budgets.describe(subnet, list(limits))['budgets']:
        cost = ChipLatency(entry['chip'])
        wanted = total_cost(cost, profile(model, (3, 8, 8)), precisions)
        assert entry['type'] == 'ChipLatency' and entry['cost'] == pytest.approx(wanted)
    assert len(budgets.names) == 4 and budgets.minimise == [2, 3]
