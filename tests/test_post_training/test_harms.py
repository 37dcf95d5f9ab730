"""Harms of candidates against nets whose distance is known, and what they leave."""

import numpy as np
import pytest
import torch
from torch import nn

from mmmpq.baselines.measurements import Measurements
from mmmpq.layers import float_mode
from mmmpq.post_training.harms import REFERENCE, _read, measure
from mmmpq.post_training.pipeline import CANDIDATES, prepare, score
from mmmpq.search import Problem

INPUTS = (24, 4, 4)


def problem(net, batches, candidates=CANDIDATES):
    # By pattern: stem and prediction layers, which all of these are, take all of them.
    prepare(net, batches, dict(candidates={'*': candidates}), INPUTS)
    return Problem(net, ['1 GBOPs'], INPUTS, 0)


def distance(y, other):
    return float((other - y).double().square().sum() / y.double().square().sum())


@pytest.fixture
def one():
    """One layer with orthogonal weights, so that errors of inputs keep their norm."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(24, 24, 1))
    nn.init.orthogonal_(net[0].weight.data[..., 0, 0])
    return net, [torch.randn(512, *INPUTS)]


def test_inputs_of_an_orthogonal_layer(one):
    net, (x,) = one
    p = problem(*one, candidates=[(32, a) for a in (3, 4, 6, 8)])
    (harms,) = measure(net, p.space, [x])
    layer = net[0]
    with float_mode(net), torch.no_grad():
        y = net(x)
        for (_, a), harm in zip(layer.candidates, harms, strict=True):
            alone = distance(y, net(layer.a_quantizer(x, a)))
            assert harm <= alone  # the weights make up for the rest
            assert harm == pytest.approx(alone, rel=0.01)


def test_what_weights_and_bias_make_up_for(one):
    """Inputs whose quantized values are half of them, and 1 more, harm nothing."""
    net, (x,) = one
    p = problem(*one, candidates=[(32, 4), (32, 8)])
    net[0].a_quantizer.forward = lambda x, bits: x / 2 + 1
    (harms,) = measure(net, p.space, [x])
    assert harms == pytest.approx(0, abs=1e-3)


def test_distances_between_those_measured_and_beyond():
    known = [(1.0, 0.1), (4.0, 0.8)]
    assert _read(2.0, known) == pytest.approx(0.1 * 8**0.5)
    assert _read(0.5, known) == pytest.approx(0.05)
    assert _read(8.0, known) == pytest.approx(1.6)
    assert [_read(e, known) for e, _ in known] == [0.1, 0.8]
    assert _read(0.0, known) == _read(1.0, []) == 0.0


def test_rounding_is_learned(one):
    net, (x,) = one
    net[0].weight.data[:, :, 0, 0] = torch.randn(24, 24)
    x = x + 5 * x[:, :1]  # inputs that say much the same
    p = problem(net, [x])
    (harms,) = measure(net, p.space, [x])
    layer = net[0]
    by = dict(zip(layer.candidates, harms, strict=True))
    with float_mode(net):
        y = net(x)
        nearest = layer.w_quantizer(layer.weight, REFERENCE)
        error = distance(y, layer.compute(x, nearest, layer.bias))
    assert by[4, 8] < 0.5 * error
    widths = sorted({w for w, _ in by})
    of_weights = [by[w, 8] for w in widths]
    assert of_weights == sorted(of_weights, reverse=True)


def test_the_net_is_as_before_and_values_are_kept(one):
    torch.manual_seed(1)
    net, batches = one
    net.append(nn.ReLU()).append(nn.Conv2d(24, 8, 1)).append(nn.Flatten())
    p = problem(net, batches)
    with torch.no_grad():
        before = net(batches[0])
    state = {k: v.clone() for k, v in net.state_dict().items()}
    cache, calls = Measurements(), []
    found = measure(net, p.space, batches, cache, step=lambda *at: calls.append(at))
    assert calls == [(1, 2), (2, 2)]
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    with torch.no_grad():
        assert torch.equal(net(batches[0]), before)
    net.register_forward_pre_hook(lambda *_: pytest.fail('it was evaluated'))
    again = measure(net, p.space, batches, cache)
    assert all(map(np.array_equal, found, again))


def test_a_weight_that_two_layers_share_is_measured_in_one(one):
    net, batches = one
    twin = nn.Conv2d(24, 24, 1)
    twin.weight = net[0].weight
    net.append(twin)
    p = problem(net, batches)
    assert net[0].weight is net[1].weight
    found = measure(net, p.space, batches)
    assert all(np.isfinite(h).all() and (h > 0).all() for h in found)
    assert net[0].weight is net[1].weight


def test_float_and_what_no_batch_reaches_harm_nothing(one):
    net, batches = one
    p = problem(*one, candidates=[(4, 4), (4, 32), (32, 32)])
    (harms,) = measure(net, p.space, batches)
    assert harms[2] == 0
    assert harms[0] > harms[1] > 0


def test_what_is_not_finite_names_the_layer(one):
    net, batches = one
    p = problem(*one)
    net[0].bias.data[:] = torch.nan
    with pytest.raises(ValueError, match=r'harms: what the net gives with 0 quant'):
        measure(net, p.space, batches)
    with pytest.raises(ValueError, match='found none; at least one is needed'):
        measure(net, p.space, [])


@pytest.mark.parametrize(('logits', 'scores'), [(True, 'measured'), (False, 'fisher')])
def test_classifiers_are_measured_by_default(one, tmp_path, logits, scores):
    net, batches = one
    if logits:
        net.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten())
    p = problem(net, batches)
    file = tmp_path / 'scores.json'
    score(p, batches, file=file)
    assert f'"scores": "{scores}"' in file.read_text()
    with pytest.raises(ValueError, match="scores: found 'x'; accepted are measured"):
        score(p, batches, scores='x')
