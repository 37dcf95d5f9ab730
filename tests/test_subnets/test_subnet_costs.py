"""Costs of many subnets against each one counted alone."""

import numpy as np
import pytest
import torch

from mmmpq.costs import (
    BOPs,
    Budget,
    CostAt,
    WeightBytes,
    profile,
    total_cost,
)
from mmmpq.models import ElasticMobileNetV3, quantize
from mmmpq.models.standalone import standalone
from mmmpq.policy import Precision
from mmmpq.search import SearchSpace, pricing
from mmmpq.subnets.budgets import SubnetBudgets
from mmmpq.subnets.code import GeneCode
from mmmpq.subnets.costs import SubnetCosts
from mmmpq.subnets.evolution import spread
from mmmpq.subnets.space import SubnetSpace

SHAPE = (3, 16, 16)
GRID = [(w, a) for w in (2, 3, 4) for a in (2, 3, 4)]


def budget(limit, kind='BOPs', shape=SHAPE):
    return Budget.build(dict(type=kind, limit=limit, input_shape=shape))


@pytest.fixture
def chain(problem):
    """A supernet that is elastic in its bits alone, and its subnets."""
    model, *_ = problem(candidates=GRID, mixing='sampled', groups='layer', ends='fixed')
    return model, SubnetSpace(model)


class Elastic(torch.nn.Module):
    """Two convs, of which the second may be left out and the first be narrower."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.two = torch.nn.Conv2d(8, 8, 1)
        self.head = torch.nn.Conv2d(8, 5, 1)
        self.activate(dict(depth=2, width=8, resolution=16))

    def genes(self):
        return dict(depth=(1, 2), width=(4, 8), resolution=(8, 12, 16))

    def activate(self, values):
        self.values = dict(values)

    def idle(self, values):
        return ['two'] if values['depth'] == 1 else []

    def layer_weights(self, values):
        width = values['width']
        found = {'one': 27 * width, 'two': 64, 'head': 5 * 8}
        return {k: v for k, v in found.items() if k != 'two' or values['depth'] == 2}

    def layer_macs(self, values, resolution):
        weights = self.layer_weights(values)
        return {name: n * resolution**2 for name, n in weights.items()}

    def forward(self, x):
        return self.head(self.two(self.one(x)))


@pytest.fixture
def elastic():
    quant = dict(candidates=GRID, mixing='sampled', groups='layer', ends='fixed')
    quant['fixed'] = {'one': None, 'head': (8, 8)}
    model = quantize(Elastic(), **quant)
    return model, SubnetSpace(model)


def test_bits_alone_cost_what_the_search_space_says(chain):
    model, space = chain
    references = [budget('W3A3'), CostAt(WeightBytes(), SHAPE)]
    costs = SubnetCosts(model, space, references)
    genes = spread(costs.code.sizes, 30)
    found = costs(genes)
    prices = [pricing(model, SearchSpace(model))(r) for r in references]
    for row, subnet in zip(found, costs.code.subnets(genes), strict=True):
        assert row.tolist() == [p.of(space.policy(subnet)) for p in prices]
        assert row.tolist() == costs.of(subnet)
    for i, p in enumerate(prices):
        assert costs.span(i) == (p.min, p.max)
    uniform = prices[0].uniform(Precision(3, 3))
    assert costs.limit(references[0], 0) == uniform


def test_the_costs_are_sums_over_genes_for_the_solver(chain):
    model, space = chain
    costs = SubnetCosts(model, space, [budget('W3A3')])
    (table,), (constant,) = costs.linear()
    genes = spread(costs.code.sizes, 5)
    sums = constant + sum(t[genes[:, g]] for g, t in enumerate(table))
    np.testing.assert_allclose(sums, costs(genes)[:, 0])


def test_costs_between_layers_of_bits_alone(chain):
    model, space = chain
    costs = SubnetCosts(
        model, space, [budget('W3A3', 'BOPsAndChanges'), budget('W3A3')]
    )
    genes = spread(costs.code.sizes, 50)
    by_layer = [costs.of(subnet) for subnet in costs.code.subnets(genes)]
    np.testing.assert_allclose(costs(genes), by_layer, rtol=1e-12)
    table = pricing(model, SearchSpace(model))(budget('W3A3', 'BOPsAndChanges'))
    assert costs.span(0) == pytest.approx((table.min, table.max), rel=1e-12)
    assert costs.limit(budget('W3A3', 'BOPsAndChanges'), 0) == table.limit
    terms, constants = costs.linear()
    sums = [constants[0] + terms[0].of(row) for row in genes.tolist()]
    np.testing.assert_allclose(sums, costs(genes)[:, 0], rtol=1e-12)


def test_an_elastic_net_costs_what_its_layers_in_use_do(elastic):
    model, space = elastic
    costs = SubnetCosts(model, space, [budget('W4A4'), CostAt(WeightBytes(), SHAPE)])
    genes = costs.code.canonical(spread(costs.code.sizes, 60))
    for row, subnet in zip(costs(genes), costs.code.subnets(genes), strict=True):
        pixels, width = subnet['resolution'] ** 2, subnet['width']
        weights = {'one': 27 * width, 'head': 40}
        bits = {'one': subnet['one'], 'head': (8, 8)}
        if subnet['depth'] == 2:
            weights['two'], bits['two'] = 64, subnet['two']
        bops = sum(pixels * n * bits[k][0] * bits[k][1] for k, n in weights.items())
        assert row.tolist() == costs.of(subnet)
        assert row[0] == bops
        assert row[1] == sum(n * bits[k][0] for k, n in weights.items()) / 8
    least = 64 * (108 * 4 + 40 * 64)
    most = 256 * ((216 + 64) * 16 + 40 * 64)
    assert costs.span(0) == (least, most)
    assert costs.limit(budget('W4A4'), 0) == most
    with pytest.raises(ValueError, match='no sum over genes'):
        costs.linear()


def test_costs_are_those_of_the_plain_net_counted_by_hooks():
    """Of the once-for-all MobileNetV3, in small, without SE in its first stage."""
    torch.manual_seed(0)
    backbone = ElasticMobileNetV3(
        depths=(1, 2),
        kernels=(3, 5),
        expands=(2, 3),
        first=(8, 1),
        stem=(8, 2),
        stages=((16, 2, False, 'ReLU'), (24, 2, True, 'HSwish')),
        last=32,
    )
    fixed = {'*.se.*': (8, 8)}
    quant = dict(
        candidates=GRID, mixing='sampled', groups='layer', ends='fixed', fixed=fixed
    )
    model = quantize(backbone, **quant)
    space = SubnetSpace(model)
    references = [budget('W4A4'), CostAt(WeightBytes(), SHAPE)]
    costs = SubnetCosts(model, space, references)
    genes = costs.code.canonical(spread(costs.code.sizes, 6))
    for row, subnet in zip(costs(genes), costs.code.subnets(genes), strict=True):
        policy = space.policy(subnet)
        layers = profile(standalone(model, policy), SHAPE)
        for found, reference in zip(row, references, strict=True):
            assert found == total_cost(reference.cost, layers, policy.layers)


def test_the_active_subnet_stays_active(elastic):
    model, space = elastic
    subnet = space.smallest()
    space.activate(subnet)
    SubnetCosts(model, space, [budget('W4A4')])
    assert space.active == subnet and model.values['resolution'] == 8


def test_codes_are_those_of_the_space(elastic):
    _, space = elastic
    code = GeneCode(space)
    genes = spread(code.sizes, 40)
    subnets = code.subnets(genes)
    np.testing.assert_array_equal(code.of(subnets), genes)
    for canonical, subnet in zip(code.canonical(genes), subnets, strict=True):
        assert code.subnets(canonical[None])[0] == space.canonical(subnet)
    listed = [{k: list(v) if k in space.groups else v for k, v in subnets[0].items()}]
    np.testing.assert_array_equal(code.of(listed), genes[:1])


def test_what_an_elastic_net_cannot_be_charged_for(elastic):
    model, space = elastic
    with pytest.raises(
        ValueError, match=r'architecture are .* such as BOPs and Weight'
    ):
        SubnetCosts(model, space, [budget('W4A4', 'ActivationBytes')])


def test_budgets_objectives_and_their_bounds(chain):
    model, space = chain
    both = [budget('W3A3'), budget('W4A4', 'WeightBytes')]
    limit = budget('1 MB', 'WeightBytes')
    budgets = SubnetBudgets(model, space, {'both': both, '1 MB': [limit]})
    assert budgets.names == ['BOPs', 'WeightBytes'] and budgets.minimise == [0, 1]
    two = SubnetBudgets(model, space, {'W3A3': both[:1], '1 MB': [limit]})
    assert two.minimise == [0, 1]
    assert SubnetBudgets(model, space, {'1 MB': [limit]}).minimise == [1]
    expected = [budgets.costs.limit(b, i) for i, b in enumerate(both)]
    assert budgets.limits['both'].tolist() == expected
    assert budgets.limits['1 MB'].tolist() == [np.inf, 1e6]
    by_size = SubnetBudgets(
        model, space, {'both': both}, [CostAt(WeightBytes(), SHAPE)]
    )
    assert by_size.minimise == [1]
    subnet = space.largest(Precision(2, 2))
    meta = budgets.describe(subnet, ['both'])
    assert [b['cost'] for b in meta['budgets']] == budgets.costs.of(subnet)
    assert [b['given'] for b in meta['budgets']] == ['W3A3', 'W4A4']
    float_bops = sum(p.macs for p in profile(model, SHAPE)) * 32 * 32
    assert meta['costs']['float']['bops'] == float_bops


def test_a_budget_below_the_smallest_net(chain, elastic):
    for model, space in (chain, elastic):
        least = SubnetCosts(model, space, [CostAt(BOPs(), SHAPE)]).span(0)[0]
        with pytest.raises(
            ValueError, match='cannot be met: the subnets span'
        ) as error:
            SubnetBudgets(model, space, {'x': [budget('10 BOPs')]})
        assert "'10 BOPs' = 10 BOPs" in str(error.value)
        assert f'[{least:.6g}, ' in str(error.value)
