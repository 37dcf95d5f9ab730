"""What is proposed where budgets leave little."""

import numpy as np
from torch import nn

from mmmpq.costs import Budget
from mmmpq.models import quantize
from mmmpq.subnets.budgets import SubnetBudgets
from mmmpq.subnets.search import SubnetSearch
from mmmpq.subnets.space import SubnetSpace


class Elastic(nn.Module):
    """A conv with most of the MACs, and behind the pooling one with most weights."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 64, 1)
        self.activate(dict(resolution=16))

    def genes(self):
        return dict(resolution=(8, 16))

    def activate(self, values):
        self.values = dict(values)

    def idle(self, values):
        return []

    def layer_weights(self, values):
        return {'one': 216, 'two': 512}

    def layer_macs(self, values, resolution):
        return {'one': 216 * resolution**2, 'two': 512}

    def forward(self, x):
        return self.two(self.one(x).mean((2, 3), keepdim=True))


class Constant:
    def predict(self, genes):
        return np.zeros(len(genes))


def test_a_budget_that_only_mixed_nets_meet():
    quant = dict(candidates=[(2, 8), (4, 2)], mixing='sampled', groups='layer')
    model = quantize(Elastic(), **quant, fixed=dict(one=None, two=None))
    space = SubnetSpace(model)
    common = dict(input_shape=(3, 16, 16))

    def search(bops):
        limits = dict(BOPs=bops, WeightBytes='0.24 KB')
        both = [Budget.build(dict(common, type=t, limit=n)) for t, n in limits.items()]
        budgets = SubnetBudgets(model, space, {'both': both})
        return SubnetSearch(budgets, Constant(), population=20, generations=5)

    tight = search('0.12 MBOPs')  # W4A2 everywhere: 364 bytes, W2A8: 0.23 MBOPs
    mixed = tight.front(3, np.empty((0, 3), np.int64))
    assert {(c.subnet['one'], c.subnet['two']) for c in mixed} == {((4, 2), (2, 8))}
    assert tight.uniform(3) == []
    uniform = search('0.23 MBOPs').uniform(3)
    assert [(c.subnet['one'], c.subnet['two']) for c in uniform] == [((2, 8), (2, 8))]
