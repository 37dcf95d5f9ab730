"""EdMIPS' complexity: its facts, normalisers, gradient, and what is refused."""

import pytest
import torch
import torchvision

from mmmpq.losses import ComplexityPenalty
from mmmpq.models import quantize
from mmmpq.registry import LOSSES, build
from mmmpq.search import SearchSpace, pricing

COST = dict(type='BOPs', input_shape=(3, 8, 8))
LATE, EARLY = 9 * 4 * 6 * 64, 9 * 2 * 4 * 64  # MACs
NONE = torch.ones(0)


def test_facts_of_resnet18():
    """Σ MAC / MAC_first = 14.667; the η-term .3685 at the start and .1965 at 2/2."""
    model = quantize(
        torchvision.models.resnet18(),
        candidates=[(w, a) for w in (1, 2, 3, 4) for a in (2, 3, 4)],
        groups='layer',
        exclude=['conv1', 'fc'],
        quantizer=dict(type='GaussianQuantizer'),
        relaxation=dict(type='Softmax', factorised=True, init=0.01),
    )
    space = SearchSpace(model)
    penalty = ComplexityPenalty(
        eta=0.00335, cost=dict(type='BOPs', input_shape=(3, 224, 224))
    )
    penalty.bind(pricing(model, space))
    assert len(space.groups) == 19
    assert penalty.scale / 1e6 == pytest.approx(115.61, abs=0.01)
    total = sum(layer.macs for layer in penalty.table.searched)
    assert total / penalty.scale == pytest.approx(14.667, abs=5e-4)
    assert float(penalty(space.probs(), NONE, 0.0)) == pytest.approx(0.3685, abs=5e-5)
    w2a2 = [
        torch.tensor([float(c == (2, 2)) for c in g.candidates]) for g in space.groups
    ]
    assert float(penalty(w2a2, NONE, 1.0)) == pytest.approx(0.1965, abs=5e-5)


@pytest.mark.parametrize(
    ('changes', 'scale'),
    [
        ({}, EARLY),  # the first in the order of the calls
        (dict(normaliser='none'), 1),
        (dict(normaliser='uniform', uniform='W4A4'), 16 * (LATE + EARLY)),
        (dict(normaliser='uniform', uniform=(3, 2)), 6 * (LATE + EARLY)),
        (dict(cost=dict(type='WeightBytes')), 9 * 2 * 4 / 8),
    ],
)
def test_normalisers(net, changes, scale):
    model, space = net()
    cfg = dict(type='ComplexityPenalty', eta=0.5, cost=COST)
    penalty = build(LOSSES, {**cfg, **changes})
    penalty.bind(pricing(model, space))
    assert penalty.scale == scale
    cost = penalty.table.cost
    wanted = sum(
        float(p) * cost(layer, c)
        for name, layer in zip(('early', 'late'), penalty.table.searched, strict=True)
        for group in space.groups
        if group.layers == [name]
        for p, c in zip(group.relaxation.probs(), group.candidates, strict=True)
    )
    found = penalty(space.probs(), NONE, 0.3)
    assert found.dtype == torch.float32 and found.shape == ()
    assert float(found) == pytest.approx(0.5 * wanted / scale, rel=1e-5)


def test_fixed_and_float_layers_do_not_count(net):
    values = []
    for rest in ('float', 'fixed'):
        model, space = net(rest)
        penalty = ComplexityPenalty(eta=1.0, cost=COST)
        penalty.bind(pricing(model, space))
        values.append(float(penalty(space.probs(), NONE, 0.0)))
    assert values[0] == values[1] > 0


def test_factorised_is_macs_by_both_means(net):
    model, space = net(relaxation=dict(type='Softmax', factorised=True))
    penalty = ComplexityPenalty(eta=0.1, cost=COST)
    penalty.bind(pricing(model, space))
    wanted = 0.0
    for group in space.groups:
        w, a = (
            torch.softmax(part, 0) @ torch.tensor([2.0, 3.0])
            for part in group.relaxation.logits.split(2)
        )
        macs = {'early': EARLY, 'late': LATE}[group.name]
        wanted += 0.1 * macs / EARLY * float(w) * float(a)
    assert float(penalty(space.probs(), NONE, 0.0)) == pytest.approx(wanted, rel=1e-5)


def test_gradient_is_that_of_a_mean(net):
    """η / n · p_k (B_k - Σ_j p_j B_j)."""
    model, space = net()
    penalty = ComplexityPenalty(eta=0.2, cost=COST)
    penalty.bind(pricing(model, space))
    for logits in space.logits:
        logits.requires_grad_(True)
    found = torch.autograd.grad(penalty(space.probs(), NONE, 0.0), space.logits)
    for grad, p, b in zip(found, space.probs(), penalty.table.values, strict=True):
        p = p.detach().double()
        wanted = 0.2 / EARLY * p * (b - (p * b).sum())
        torch.testing.assert_close(grad.double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(eta=None), r'ComplexityPenalty\.eta is missing.*numbers >= 0'),
        (dict(eta=-0.1), r'ComplexityPenalty\.eta: found -0\.1'),
        (dict(eta=float('nan')), r'ComplexityPenalty\.eta: found nan'),
        (dict(eta='big'), r"ComplexityPenalty\.eta: found 'big'"),
        (dict(normaliser='frist'), r"normaliser: found 'frist'; near names: first"),
        (dict(normaliser=None), r'normaliser: found None; accepted is a text'),
        (dict(normaliser='uniform'), r'uniform: found None.*W4A4'),
        (dict(uniform='W4A4'), r"uniform: found 'W4A4'.*else nothing"),
        (dict(normaliser='uniform', uniform='W9A4'), r'uniform: found 9 bits'),
        (
            dict(cost='BOPs'),
            r"cost: found 'BOPs'; accepted is a dict",
        ),
        (dict(cost=dict(type='BOP')), r"cost: unknown type 'BOP'; near names: BOPs"),
        (dict(cost=dict(type='BOPs', limit='W4A4')), r"cost BOPs: wrong keys \['limit"),
        (dict(cost=dict(type='BOPs', input_shape=8)), r'cost: input_shape is 8'),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        build(LOSSES, {**dict(type='ComplexityPenalty', eta=0.1, cost=COST), **changes})
    if 'eta' in changes and changes['eta'] is None:
        with pytest.raises(ValueError, match=message):
            build(LOSSES, dict(type='ComplexityPenalty', cost=COST))


def test_unbound_and_unreachable(net):
    model, space = net()
    penalty = ComplexityPenalty(eta=0.1, cost=COST)
    with pytest.raises(RuntimeError, match='ComplexityPenalty: bind'):
        penalty(space.probs(), NONE, 0.0)
    model.forward = lambda x: x  # no layer is called
    with pytest.raises(ValueError, match=r"normaliser: 'first' is 0\.0 BOPs"):
        penalty.bind(pricing(model, space))


def test_one_input_is_profiled_once(net, monkeypatch):
    model, space = net()
    count = []
    from mmmpq.search import space as module

    real = module.profile
    monkeypatch.setattr(module, 'profile', lambda *a: count.append(a) or real(*a))
    for cost in (COST, dict(COST, type='WeightBytes'), dict(COST, proposals=7)):
        ComplexityPenalty(eta=0.1, cost=cost).bind(pricing(model, space))
    assert len(count) == 2
