"""The barrier: its table, its gradient, its guard."""

import math

import pytest
import torch

from mmmpq.losses import BarrierPenalty, barrier
from mmmpq.registry import LOSSES, build


@pytest.mark.parametrize(
    ('scale', 'slack', 'gradient'),
    [
        (10, 0.5, 0.93), (10, 0.1, 7.2), (10, 0.01, 95), (10, 0.001, 995),
        (100, 0.5, 0.50), (100, 0.1, 3.8), (100, 0.01, 72), (100, 0.001, 954),
        (1e9, 0.5, 0.10), (1e9, 0.1, 0.54), (1e9, 0.01, 6.2), (1e9, 0.001, 72),
    ],
)  # fmt: skip
def test_gradients_of_the_table(scale, slack, gradient):
    ratio = torch.tensor(1 - slack, dtype=torch.float64, requires_grad=True)
    value = barrier(ratio, mu=1.0, scale=scale, guard=1e-9)
    assert value.item() == pytest.approx(-math.log(math.log(scale * slack + 1)))
    value.backward()
    tolerance = 0.005 if gradient < 1 else 0.05 if gradient < 10 else 0.5
    assert float(ratio.grad) == pytest.approx(gradient, abs=tolerance)


@pytest.mark.parametrize('ratio', [0.0, 0.3, 0.9, 0.99, 0.9995, 1.0, 1.2, 7.0])
def test_gradient_is_the_finite_difference(ratio):
    x = torch.tensor([ratio], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: barrier(r, 0.3, 10.0, 0.01), x, eps=1e-7)
    barrier(x, 0.3, 10.0, 0.01).sum().backward()
    slack = max(10 * (1 - ratio), 0.01)
    wanted = 10 * 0.3 / ((slack + 1) * math.log(slack + 1))
    assert float(x.grad) == pytest.approx(wanted)


def test_guard_continues_smoothly():
    guard, eps = 0.1, 1e-8
    edge = 1 - guard / 10
    x = torch.tensor([edge - eps, edge + eps], dtype=torch.float64, requires_grad=True)
    value = barrier(x, 1.0, 10.0, guard)
    value.sum().backward()
    assert (value[1] - value[0]).item() == pytest.approx(0, abs=1e-5)
    assert float(x.grad[1] / x.grad[0]) == pytest.approx(1, abs=1e-5)


def test_monotone_and_finite_outside():
    ratios = torch.linspace(0, 50, 2001)
    values = barrier(ratios, 0.01, 10.0, 0.01)
    assert torch.isfinite(values).all()
    assert (values.diff() > 0).all()


def test_budgets_add_and_mu_decays_geometrically():
    penalty = build(LOSSES, dict(type='BarrierPenalty', mu=0.1, mu_end=0.001))
    ratios = torch.tensor([0.5, 0.8])
    for progress, mu in (0.0, 0.1), (0.5, 0.01), (1.0, 0.001):
        wanted = -mu * (math.log(math.log(6)) + math.log(math.log(3)))
        assert float(penalty([], ratios, progress)) == pytest.approx(wanted, rel=1e-4)


def test_mu_is_constant_by_default():
    penalty = BarrierPenalty(mu=0.2)
    ratios = torch.tensor([0.7])
    assert float(penalty([], ratios, 0.0)) == float(penalty([], ratios, 1.0))


@pytest.mark.parametrize('key', ['mu', 'mu_end', 'scale', 'guard'])
@pytest.mark.parametrize('value', [0, -1.0, float('nan')])
def test_bad_arguments(key, value):
    with pytest.raises(ValueError, match=rf'BarrierPenalty\.{key}'):
        BarrierPenalty(**{key: value})
