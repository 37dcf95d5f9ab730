from itertools import pairwise

import pytest
import torch
from torch import nn

from mmmpq.costs import BOPs, Budget
from mmmpq.layers import Softmax
from mmmpq.models import quantize
from mmmpq.registry import COSTS, RELAXATIONS
from mmmpq.search import SearchSpace, cost_tables

CANDIDATES = [(2, 2), (2, 8), (8, 2), (3, 3), (4, 4), (4, 8), (8, 8)]


@RELAXATIONS.register_module(name='OwnSoftmax', force=True)
class OwnSoftmax(Softmax):
    """A user's relaxation, which the search knows nothing about."""


@COSTS.register_module(name='BOPsAndChanges', force=True)
class BOPsAndChanges(BOPs):
    """BOPs, and so many for each step of width between two layers in a row; equal
    widths earn some."""

    pairwise = True

    def between(self, feed, first, second, p, q):
        return feed.inputs * (30_000 * abs(p.a_bits - q.a_bits) - 5_000 * (p == q))


class Chain(nn.Module):
    """A stem and four searchable convs of different sizes, one of them shared."""

    def __init__(self):
        super().__init__()
        sizes = [3, 4, 8, 8, 12]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, stride=1 + (o == 8), padding=1)
            for i, o in pairwise(sizes)
        )
        self.twice = nn.Conv2d(12, 12, 1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        for conv in self.convs:
            x = conv(x).relu()
        x = self.twice(self.twice(x))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope='session')
def problem():
    """Build (model, space, tables) with budgets given as (type, limit)."""

    def build(*budgets, candidates=CANDIDATES, **quant):
        torch.manual_seed(0)
        quant.setdefault('ends', 'fixed')
        model = quantize(Chain(), candidates=candidates, **quant)
        space = SearchSpace(model)
        cfgs = [dict(type=t, limit=n, input_shape=(3, 16, 16)) for t, n in budgets]
        return model, space, cost_tables(model, space, map(Budget.build, cfgs))

    return build
