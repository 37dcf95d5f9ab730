"""A mixing of one's own."""

import pytest
import torch
from torch import nn

from mmmpq.layers import Mixing, calibrating
from mmmpq.models import apply_policy, quantize
from mmmpq.policy import Policy, Precision
from mmmpq.registry import MIXINGS
from mmmpq.search import Search


@pytest.fixture
def two():
    """Mixing `two`: the outputs of the two most probable candidates."""

    @MIXINGS.register_module(name='two')
    class Two(Mixing):
        own_weights = True

        def output(self, layer, x, shares):
            probs, places = shares.layers.topk(2)
            total = 0.0
            for p, j in zip(probs / probs.sum(), places.tolist(), strict=True):
                a = layer.a_quantizer(x, layer.candidates[j].a_bits)
                weight = layer.candidate_weight(j)
                total = total + p * layer.compute(a, weight, layer.bias)
            return total

    yield
    del MIXINGS.module_dict['two']


def small(**quant):
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2)
    )
    quant = dict(candidates=['W2A2', 'W4A4', 'W8A8'], groups='layer') | quant
    net = quantize(net, fixed={'*': None}, **quant)
    x = torch.randn(4, 3, 5, 5)
    with torch.no_grad(), calibrating(net):
        net(x)
    return net, x


@pytest.mark.parametrize('own', [False, True])
def test_it_is_searched_by_its_name_alone(two, own):
    net, x = small(mixing='two', own_weights=own)
    search = Search(net, ['W4A4'], input_shape=(3, 5, 5))
    search.begin(4)
    before = [p.clone() for p in search.space.logits]
    for i in range(4):
        search.draw(i)
        search.step(i, lambda: net(x).square().mean())
        with search.mixing():
            net(x).mean().backward()
    assert all((p != q).any() for p, q in zip(search.space.logits, before, strict=True))
    policy = search.policy(search.choose(lambda: 0.0))
    apply_policy(net, policy)
    assert net(x).shape == (4, 2)


def test_it_computes_what_it_says(two):
    net, x = small(mixing='two')
    layer = net[0]
    layer.relaxation.logits.data = torch.tensor([1.0, -5.0, 1.0])
    a, b = (
        layer.compute(layer.a_quantizer(x, n), layer.w_quantizer(layer.weight, n), None)
        for n in (2, 8)
    )
    torch.testing.assert_close(
        layer(x), (a + b) / 2 + layer.bias[:, None, None], rtol=1e-4, atol=1e-5
    )
    assert layer.mixing == 'two' and 'mixing=two' in repr(layer)
    apply_policy(net, Policy({n: Precision(4, 4) for n in ('0', '2', '4')}))
    assert not hasattr(layer, 'mixing')
