"""Prob-1: maxima, zeros, gradient, ramp."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmmpq.layers import padded
from mmmpq.losses import Prob1Regularizer, prob1
from mmmpq.registry import LOSSES, build


@pytest.mark.parametrize(
    ('m', 'maximum'), [(2, 0.25), (3, 0.2963), (4, 0.3164), (6, 0.3349)]
)
def test_maximum_at_uniform(m, maximum):
    assert float(prob1(torch.full((m,), 1 / m))) == pytest.approx(maximum, abs=5e-5)
    others = torch.softmax(torch.randn(1000, m) * 2, 1)
    assert all(float(prob1(p)) <= maximum + 5e-5 for p in others)


def test_zero_at_one_hot():
    assert float(prob1(torch.tensor([0.0, 1.0, 0.0]))) == 0
    assert float(prob1(torch.tensor([1.0]))) == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-6, 6), min_size=2, max_size=7))
def test_gradient_of_the_logits(logits):
    """p_k (Σ_l p_l G_l - G_k) with G_k = Π_{j≠k} (1 - p_j)."""
    theta = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    prob1(torch.softmax(theta, 0)).backward()
    p = torch.softmax(theta.detach(), 0)
    others = [torch.cat([p[:k], p[k + 1 :]]) for k in range(len(p))]
    g = torch.stack([(1 - o).prod() for o in others])
    torch.testing.assert_close(theta.grad, p * ((p * g).sum() - g), rtol=1e-6, atol=0)


def test_gradient_is_the_finite_difference():
    theta = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: prob1(torch.softmax(t, 0)), theta)
    uniform = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    prob1(torch.softmax(uniform, 0)).backward()
    torch.testing.assert_close(uniform.grad, torch.zeros(5, dtype=torch.float64))


def test_several_groups_at_once_and_certain_candidates():
    """Rows padded with zeros are the groups; where p is 1 the gradient is exact."""
    groups = [[0.2, 0.3, 0.5], [1.0, 0.0], [0.0, 0.0, 1.0], [0.4, 0.6]]
    groups = [torch.tensor(g, dtype=torch.float64, requires_grad=True) for g in groups]
    found = prob1(padded(groups))
    assert found.tolist() == pytest.approx([0.28, 0, 0, 0.24])
    grads = torch.autograd.grad(found.sum(), groups)
    for p, grad in zip(groups, grads, strict=True):
        for k in range(len(p)):
            others = torch.cat([p[:k], p[k + 1 :]])
            assert float(grad[k]) == pytest.approx(-float((1 - others).prod()))
    assert Prob1Regularizer(ramp=(0, 0))(groups, None, 1.0) == 0.5 * found.sum()


@pytest.mark.parametrize(
    ('ramp', 'weights'),
    [
        ((0.6, 0.9), {0: 0, 0.6: 0, 0.75: 1, 0.9: 2, 1: 2}),
        ((0.5, 0.5), {0: 0, 0.3: 0, 0.49: 0, 0.5: 2, 1: 2}),
        ((0.0, 0.0), {0: 2, 1: 2}),
        ((0.0, 1.0), {0: 0, 0.25: 0.5, 1: 2}),
    ],
)
def test_ramp_and_sum_over_groups(ramp, weights):
    penalty = build(LOSSES, dict(type='Prob1Regularizer', weight=2.0, ramp=ramp))
    probs = [torch.full((2,), 0.5), torch.tensor([0.9, 0.1])]
    for progress, weight in weights.items():
        found = float(penalty(probs, torch.ones(1), progress))
        assert found == pytest.approx(weight * (0.25 + 0.09))


@pytest.mark.parametrize(
    'changes', [dict(weight=-1), dict(ramp=(0.9, 0.6)), dict(ramp=(-0.1, 1))]
)
def test_bad_arguments(changes):
    with pytest.raises(ValueError, match=rf'Prob1Regularizer\.{next(iter(changes))}'):
        Prob1Regularizer(**changes)
