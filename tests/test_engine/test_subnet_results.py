"""What is written where nothing that was measured is inside the target."""

import json

import numpy as np
import pytest
from torch import nn

from mmmpq.costs import Budget
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
