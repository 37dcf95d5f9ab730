"""Penalties are added, factors multiplied, and each is named."""

import pytest
import torch

from mmmpq.losses import Objective
from mmmpq.search import pricing

COST = dict(type='BOPs', input_shape=(3, 8, 8))
AWARE = dict(type='CostAwareLoss', beta=0.1, gamma=0.9, cost=COST)


def test_sums_products_and_names(net):
    model, space = net()
    objective = Objective(
        [
            dict(type='ComplexityPenalty', eta=0.1, cost=COST),
            AWARE,
            dict(type='Prob1Regularizer', ramp=(0, 0)),
            dict(AWARE, beta=2.0, cost=dict(type='WeightBytes')),
            dict(type='ComplexityPenalty', eta=0.3, cost=COST),
            dict(AWARE, gamma=0.0),
        ]
    )
    names = ['complexity', 'cost_aware', 'prob1', 'cost_aware_2', 'complexity_2']
    assert objective.names == [*names, 'cost_aware_3']
    assert objective.multiplies and not objective.tables
    objective.bind(pricing(model, space))
    assert [p.name for p in objective.tables] == ['BOPs'] * 2 + ['WeightBytes'] + [
        'BOPs'
    ] * 2
    terms = objective(space.probs(), [], 1.0)
    parts = {k: float(v) for k, v in terms.parts.items()}
    assert list(parts) == objective.names
    assert parts['complexity_2'] == pytest.approx(3 * parts['complexity'])
    added = parts['complexity'] + parts['prob1'] + parts['complexity_2']
    assert float(terms.penalty) == pytest.approx(added)
    product = parts['cost_aware'] * parts['cost_aware_2'] * parts['cost_aware_3']
    assert float(terms.factor) == pytest.approx(product)
    assert parts['cost_aware_3'] == pytest.approx(0.1)


def test_budgets_alone():
    objective = Objective([dict(type='BarrierPenalty', mu=0.5)])
    assert not objective.pricing and not objective.multiplies
    probs = [torch.full((2,), 0.5)]
    ratio = torch.tensor(0.5, dtype=torch.float64)
    terms = objective(probs, [ratio, ratio], 0.0)
    assert terms.factor == 1.0
    assert terms.penalty.dtype == torch.float32
    assert float(terms.penalty) == float(terms.parts['barrier']) != 0
    assert float(objective(probs, [], 0.0).penalty) == 0


def test_unknown_penalty():
    with pytest.raises(ValueError, match=r"'CostAware'; near names: CostAwareLoss"):
        Objective([dict(type='CostAware')])
