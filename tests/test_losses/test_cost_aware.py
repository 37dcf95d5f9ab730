"""DNAS' factor of the loss: value, gradient, units, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmmpq.losses import CostAwareLoss, cost_factor
from mmmpq.registry import LOSSES, build
from mmmpq.search import pricing

COST = dict(type='BOPs', input_shape=(3, 8, 8))
NONE = torch.ones(0)


@settings(max_examples=50, deadline=None)
@given(st.floats(1.1, 30), st.floats(0.01, 2), st.floats(0, 2))
def test_value_and_gradient(log_cost, beta, gamma):
    """β (log C)^γ and β γ (log C)^(γ - 1) / C."""
    cost = torch.tensor(math.exp(log_cost), dtype=torch.float64, requires_grad=True)
    factor = cost_factor(cost, beta, gamma)
    assert float(factor.detach()) == pytest.approx(beta * log_cost**gamma, rel=1e-9)
    factor.backward()
    wanted = beta * gamma * log_cost ** (gamma - 1) / math.exp(log_cost)
    assert float(cost.grad) == pytest.approx(wanted, rel=1e-6, abs=1e-300)


def test_constant_and_finite_where_the_logarithm_is_not():
    cost = torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    factor = cost_factor(cost, 0.1, 0.9)
    assert factor.tolist() == pytest.approx([0.1] * 4)
    factor.sum().backward()
    assert cost.grad.tolist() == [0] * 4


@pytest.mark.parametrize('factorised', [False, True])
def test_multiplicative_loss_against_finite_differences(net, factorised):
    """d(L · F) = F dL + L dF, for a task loss L that depends on the logits, too."""
    model, space = net(relaxation=dict(type='Softmax', factorised=factorised))
    loss = CostAwareLoss(beta=0.1, gamma=0.9, cost=COST)
    loss.bind(pricing(model, space))
    model.double()
    logits = [p.requires_grad_(True) for p in space.logits]
    weights = [torch.randn(4, dtype=torch.float64) for _ in logits]

    def task(probs):
        return sum((p @ w).exp() for p, w in zip(probs, weights, strict=True))

    def product(*_):
        probs = space.probs()
        value = cost_factor(loss.expected(probs), loss.beta, loss.gamma)
        return task(probs) * value

    assert torch.autograd.gradcheck(product, tuple(logits), eps=1e-6, atol=1e-8)
    probs = space.probs()
    factor = loss(probs, NONE, 0.5)
    assert factor.dtype == torch.float32
    found = torch.autograd.grad(task(probs) * factor.double(), logits)
    # The closed form: every group's dF/dp_j = β γ (log C)^(γ-1) / C · B_j.
    probs = space.probs()
    cost = float(loss.expected(probs).detach())
    slope = 0.1 * 0.9 * math.log(cost) ** -0.1 / cost
    value = 0.1 * math.log(cost) ** 0.9
    total = float(task(probs).detach())
    outer = [
        value * (p.detach() @ w).exp() * w + total * slope * b
        for p, w, b in zip(probs, weights, loss.table.values, strict=True)
    ]
    wanted = torch.autograd.grad(probs, logits, outer)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ('kind', 'per_unit'), [('BOPs', 1), ('WeightBytes', 8), ('ActivationBytes', 8)]
)
def test_bytes_count_as_bits_and_fixed_layers_do_not(net, kind, per_unit):
    values = []
    for rest in ('float', 'fixed'):
        model, space = net(rest)
        cfg = dict(
            type='CostAwareLoss', beta=0.1, gamma=0.9, cost=dict(COST, type=kind)
        )
        loss = build(LOSSES, cfg)
        loss.bind(pricing(model, space))
        probs = space.probs()
        pairs = zip(probs, loss.table.values, strict=True)
        cost = per_unit * sum(float(p.double() @ b) for p, b in pairs)
        values.append(float(loss(probs, NONE, 0.0)))
        assert values[-1] == pytest.approx(0.1 * math.log(cost) ** 0.9, rel=1e-5)
    assert values[0] == values[1]
    assert loss.multiplies


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(beta=None), r'CostAwareLoss\.beta is missing'),
        (dict(gamma=None), r'CostAwareLoss\.gamma is missing'),
        (
            dict(beta=-0.1),
            r'CostAwareLoss\.beta: found -0\.1; accepted are numbers > 0',
        ),
        (dict(beta=0), r'CostAwareLoss\.beta: found 0'),
        (dict(gamma=-1), r'CostAwareLoss\.gamma: found -1; accepted are numbers >= 0'),
        (dict(gamma=float('inf')), r'CostAwareLoss\.gamma: found inf'),
        (dict(beta=True), r'CostAwareLoss\.beta: found True'),
        (dict(cost=dict()), r'CostAwareLoss\.cost: type is missing'),
        (dict(cost=dict(type='Bytes')), r"unknown type 'Bytes'; near.*WeightBytes"),
    ],
)
def test_bad_arguments(changes, message):
    cfg = dict(type='CostAwareLoss', beta=0.1, gamma=0.9, cost=COST)
    with pytest.raises(ValueError, match=message):
        build(LOSSES, {**cfg, **changes})
    for key in [k for k, v in changes.items() if v is None]:
        with pytest.raises(ValueError, match=message):
            build(LOSSES, {k: v for k, v in cfg.items() if k != key})


def test_a_net_that_costs_nothing(net):
    model, space = net()
    model.forward = lambda x: x
    with pytest.raises(ValueError, match=r'CostAwareLoss\.cost: .* at most 0 in'):
        CostAwareLoss(beta=0.1, gamma=0.9, cost=COST).bind(pricing(model, space))
