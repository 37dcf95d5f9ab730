"""A weight for each candidate: values, gradients, checkpoints."""

import copy

import pytest
import torch
from mmengine.model import initialize
from torch import nn

from mmmpq.layers import MixedConv2d, MixedLinear, QuantConv2d
from mmmpq.policy import Precision

CANDIDATES = [(2, 4), (4, 4), (4, 8), (32, 32)]
DNAS = dict(
    w_quantizer=dict(type='DoReFaQuantizer'), a_quantizer=dict(type='PACTQuantizer')
)


def conv(mixing='outputs', candidates=CANDIDATES, **kwargs):
    """A layer whose weights and ranges differ from candidate to candidate."""
    kwargs = dict(kernel_size=3, padding=1) | kwargs
    layer = MixedConv2d(
        3, 4, candidates=candidates, mixing=mixing, own_weights=True, **kwargs
    )
    layer._copy_weights()
    with torch.no_grad():
        layer.relaxation.logits.normal_()
        for own in layer.own.values():
            own.weight.normal_()
    layer.calibrate([torch.randn(1000)])
    return layer


def weights(layer):
    """Leaf W_j and its quantizer, by candidate."""
    return [(layer.weight, layer.w_quantizer)] + [
        (own.weight, own.w_quantizer) for own in layer.own.values()
    ]


def terms(layer, x):
    """conv(Q_a(x), Q_w(W_j)) of every candidate."""
    return [
        nn.functional.conv2d(
            layer.a_quantizer(x, a), quantizer(weight, w), layer.bias, padding=1
        )
        for (w, a), (weight, quantizer) in zip(
            layer.candidates, weights(layer), strict=True
        )
    ]


def leaves(layer, x):
    return [x, layer.relaxation.logits, *(w for w, _ in weights(layer))]


@pytest.mark.parametrize(
    ('candidates', 'quantizers'),
    [
        (CANDIDATES, {}),
        (CANDIDATES, dict(w_quantizer=dict(type='LinearQuantizer', per_channel=True))),
        ([(1, 4), (2, 4), (3, 3), (32, 32)], DNAS),
        ([(1, 32), (2, 32), (32, 32)], DNAS),
    ],
)
def test_outputs_are_the_sum_over_all_candidates(candidates, quantizers):
    layer = conv(candidates=candidates, **quantizers)
    x = torch.randn(2, 3, 7, 7, requires_grad=True)
    layer.relaxation.logits.requires_grad_(True)
    out = layer(x)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves(layer, x), grad)
    p = torch.softmax(layer.relaxation.logits, 0)
    wanted = sum(p[j] * term for j, term in enumerate(terms(layer, x)))
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(wanted, leaves(layer, x), grad)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('choice', range(4))
def test_sampled_path_is_one_candidate_and_the_others_rest(choice):
    layer = conv('sampled')
    layer.relaxation.choice = choice
    x = torch.randn(2, 3, 7, 7)
    out = layer(x)
    torch.testing.assert_close(out, terms(layer, x)[choice], rtol=1e-5, atol=1e-5)
    out.square().sum().backward()
    for j, (weight, quantizer) in enumerate(weights(layer)):
        assert bool(weight.grad.any()) == (j == choice)
        if quantizer.range.requires_grad:
            assert bool(quantizer.range.grad.any()) == (j == choice)
    # DDP would wait for a parameter that has no gradient at all
    trained = [p for p in layer.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    with torch.no_grad():
        assert torch.equal(layer(x), out)


@pytest.mark.parametrize('choice', range(4))
def test_shared_weight_with_float_candidates_leaves_no_parameter_out(choice):
    layer = MixedConv2d(
        3, 4, 3, candidates=[(2, 2), (32, 4), (4, 32), (32, 32)], mixing='sampled'
    )
    layer.relaxation.choice = choice
    layer(torch.randn(2, 3, 7, 7)).sum().backward()
    trained = [p for p in layer.parameters() if p.requires_grad]
    assert len(trained) == 4
    assert all(p.grad is not None for p in trained)


def test_sampled_gradient_of_the_logits_passes_straight_through():
    layer = conv('sampled', [(2, 4), (4, 4), (32, 8)])
    x = torch.randn(2, 3, 7, 7)
    layer.relaxation.choice = 1
    logits = layer.relaxation.logits.requires_grad_()
    out = layer(x)
    torch.testing.assert_close(out, terms(layer, x)[1], rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, logits, grad)
    # by hand, at the one-hot h: conv(Σ_a h_a Q_a(x), Σ_j h_j Q_w(W_j))
    hot = torch.tensor([0.0, 1.0, 0.0], requires_grad=True)
    bits = [w for w, _ in layer.candidates]
    pairs = zip(weights(layer), bits, strict=True)
    mean = sum(h * q(w, b) for h, ((w, q), b) in zip(hot, pairs, strict=True))
    inputs = (hot[0] + hot[1]) * layer.a_quantizer(x, 4)
    inputs = inputs + hot[2] * layer.a_quantizer(x, 8)
    wanted = nn.functional.conv2d(inputs, mean, layer.bias, padding=1)
    (at_hot,) = torch.autograd.grad(wanted, hot, grad)
    p = torch.softmax(logits.detach(), 0)
    wanted = p * (at_hot - (p * at_hot).sum())
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_they_share_nothing_and_cost_what_they_say():
    shared = MixedLinear(6, 5, candidates=[(2, 2), (4, 4), (4, 8)], mixing='outputs')
    own = MixedLinear(
        6, 5, candidates=[(2, 2), (4, 4), (4, 8)], mixing='outputs', own_weights=True
    )

    def count(layer, name):
        return sum(p.numel() for n, p in layer.named_parameters() if name in n)

    assert count(shared, 'weight') == 30
    assert count(own, 'weight') == 3 * 30
    assert count(own, 'w_quantizer') == 3
    assert count(own, 'a_quantizer') == count(shared, 'a_quantizer')
    # shared weights need no more memory for more candidates
    more = MixedLinear(6, 5, candidates=[(b, b) for b in range(2, 9)], mixing='outputs')
    assert count(more, 'weight') == 30
    places = [p.data_ptr() for p in own.parameters()]
    assert len(set(places)) == len(places)
    own(torch.randn(3, 6))
    before = [w.clone() for w, _ in weights(own)]
    assert all(torch.equal(before[0], w) for w in before[1:])
    optimizer = torch.optim.SGD(own.parameters(), lr=0.1, weight_decay=0.5)
    own.own['1'].weight.grad = torch.ones(5, 6)
    optimizer.step()
    changed = [
        not torch.equal(a, b) for a, (b, _) in zip(before, weights(own), strict=True)
    ]
    assert changed == [False, True, False]
    wanted = before[1] - 0.1 * (1 + 0.5 * before[1])
    torch.testing.assert_close(own.own['1'].weight.detach(), wanted)


# --- where they start from ------------------------------------------------------------


def test_they_start_as_copies_of_what_init_cfg_gives():
    layer = MixedConv2d(
        3, 4, 3, candidates=CANDIDATES, mixing='outputs', own_weights=True
    )
    for weight, _ in weights(layer):
        assert torch.equal(weight, layer.weight)
    initialize(layer, dict(type='Kaiming', layer='Conv2d'))
    x = torch.randn(2, 3, 5, 5)
    layer(x)
    for weight, _ in weights(layer):
        assert torch.equal(weight, layer.weight)
    with torch.no_grad():  # from then on they go their own ways
        layer.weight.zero_()
    layer(x)
    assert all(own.weight.any() for own in layer.own.values())


@pytest.mark.parametrize('strict', [False, True])
def test_float_checkpoint_fills_every_weight(strict):
    layer = conv()
    plain = nn.Conv2d(3, 4, 3)
    assert set(plain.state_dict()) <= set(layer.state_dict())
    state = plain.state_dict()
    if strict:  # with all that a float checkpoint lacks, but for the weights
        extra = layer.state_dict()
        state |= {k: v for k, v in extra.items() if 'weight' not in k and '.' in k}
    given = set(state)
    missing, unexpected = layer.load_state_dict(state, strict=strict)
    assert set(state) == given
    assert not unexpected
    assert not [k for k in missing if k.endswith('weight')]
    layer(torch.randn(1, 3, 5, 5))
    for weight, _ in weights(layer):
        assert torch.equal(weight, plain.weight)


@pytest.mark.parametrize('fresh', [True, False])
def test_own_checkpoint_comes_back_as_it_was(fresh):
    layer = conv()
    other = conv() if not fresh else copy.deepcopy(layer)
    if fresh:
        other._copied = False
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(other(x), layer(x))


@pytest.mark.parametrize('j', range(4))
@pytest.mark.parametrize('mixing', ['outputs', 'sampled'])
def test_fixing_keeps_the_weight_of_the_candidate(mixing, j):
    layer = conv(mixing)
    x = torch.randn(2, 3, 7, 7)
    wanted = terms(layer, x)[j]
    param, weight = layer.weight, weights(layer)[j][0].clone()
    layer.fix(Precision(*CANDIDATES[j]))
    assert type(layer) is QuantConv2d
    assert layer.weight is param and torch.equal(param, weight)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)
    w_bits, a_bits = CANDIDATES[j]
    again = QuantConv2d(3, 4, 3, padding=1, w_bits=w_bits, a_bits=a_bits)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))


def test_frozen_weights_stay_frozen():
    plain = nn.Conv2d(3, 4, 3).requires_grad_(False)
    layer = MixedConv2d.from_float(
        plain, candidates=CANDIDATES, mixing='sampled', own_weights=True
    )
    assert not any(own.weight.requires_grad for own in layer.own.values())


@pytest.mark.parametrize('candidates', [CANDIDATES, [(4, 4)]])
def test_composite_is_refused(candidates):
    with pytest.raises(ValueError, match=r"own_weights: .*'outputs' and 'sampled'"):
        MixedConv2d(3, 4, 3, candidates=candidates, own_weights=True)
