"""Weights quantized together, in Triton's interpreter, against each by its layer."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmmpq.layers import (
    BatchedRelaxation,
    MixedConv2d,
    QuantConv2d,
    QuantLinear,
    Softmax,
    watch_passes,
    weights_ahead,
)
from mmmpq.policy import parse_candidates

PAIRS = parse_candidates([(2, 4), (4, 4), (8, 8), (32, 32)])
PER_CHANNEL = dict(type='LinearQuantizer', per_channel=True)
DOREFA = dict(type='DoReFaQuantizer')


class Net(nn.Module):
    """Layers of several kinds; ``own`` quantizes its weight itself in all cases."""

    def __init__(self, mixed=False):
        super().__init__()
        torch.manual_seed(0)
        fixed = dict(w_bits=3, a_bits=4)
        self.stem = QuantConv2d(3, 8, 3, **fixed)
        self.frozen = QuantConv2d(8, 8, 1, **fixed).requires_grad_(False)
        self.channels = QuantConv2d(8, 9, 3, w_quantizer=PER_CHANNEL, **fixed)
        self.own = QuantConv2d(9, 8, 1, w_quantizer=DOREFA, **fixed)
        self.unused = QuantConv2d(8, 8, 1, **fixed)
        self.head = QuantLinear(8, 4, w_bits=8, a_bits=8)
        self.unused(torch.randn(1, 8, 4, 4))  # calibrates
        self.relaxations = []
        if mixed:
            for name in ('stem', 'channels'):
                old, r = getattr(self, name), Softmax(PAIRS)
                cfg = PER_CHANNEL if name == 'channels' else None
                new = MixedConv2d(
                    old.in_channels, old.out_channels, 3, candidates=PAIRS,
                    relaxation=r, w_quantizer=cfg,
                )  # fmt: skip
                new.weight.data = old.weight.data
                setattr(self, name, new)
                self.relaxations.append(r)
        watch_passes(self)

    def forward(self, x, wrap=lambda layer, x: layer(x)):
        x = self.frozen(wrap(self.stem, x).relu())
        x = wrap(self.channels, x).relu()
        x = self.own(x).mean((2, 3))
        return self.head(x) + self.head(x * 2)  # called twice


@pytest.fixture
def quantized_together(monkeypatch):
    """How many weights at a time."""
    made = []
    function = weights_ahead._batch().FakeQuantizeAll
    forward = function.forward

    def noted(ctx, plan, *args):
        made.append(len(plan.mixes))
        return forward(ctx, plan, *args)

    monkeypatch.setattr(function, 'forward', staticmethod(noted))
    return made


def run(net, x, **kwargs):
    """Loss and all gradients."""
    net.zero_grad()
    for r in net.relaxations:
        r.logits.requires_grad_(True)
    handed = None
    if net.relaxations:
        handed = BatchedRelaxation(net.relaxations, {'composite'}).hand()
    loss = net(x, **kwargs).square().sum()
    loss.backward()
    grads = {n: p.grad for n, p in net.named_parameters()}
    if handed is not None:
        grads['theta'] = handed.through([leaf.grad for leaf in handed.leaves])
        handed.release()
    return loss.detach(), grads


def both(mixed, monkeypatch, context=None, **kwargs):
    """What the layers give one by one, and together."""
    net = Net(mixed)
    x = torch.randn(2, 3, 9, 9)
    net(x)  # calibrates
    results = []
    for ahead in (False, True):
        monkeypatch.setattr(weights_ahead, 'has_kernels', lambda _, ahead=ahead: ahead)
        with context or torch.autocast('cpu', enabled=False):
            results.append(run(copy.deepcopy(net), x, **kwargs))
    return results


def compare(one, two):
    torch.testing.assert_close(one[0], two[0])
    assert one[1].keys() == two[1].keys()
    for name, grad in one[1].items():
        assert (grad is None) == (two[1][name] is None), name
        if grad is not None:
            torch.testing.assert_close(two[1][name], grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('mixed', [False, True])
def test_is_what_the_layers_do(mixed, quantized_together, monkeypatch):
    compare(*both(mixed, monkeypatch))
    assert quantized_together == [5]  # all but DoReFa's


@pytest.mark.parametrize('mixed', [False, True])
def test_in_mixed_precision(mixed, quantized_together, monkeypatch):
    one, two = both(mixed, monkeypatch, torch.autocast('cpu', torch.float16))
    torch.testing.assert_close(one[0], two[0])
    for name, grad in one[1].items():
        if grad is not None:
            close = dict(rtol=0.02, atol=0.02 * float(grad.abs().max()))
            torch.testing.assert_close(two[1][name], grad, **close)
    assert quantized_together == [5]


@pytest.mark.parametrize('reentrant', [False, True])
def test_under_activation_checkpointing(reentrant, quantized_together, monkeypatch):
    def wrap(layer, x):
        x.requires_grad_(True)
        return checkpoint(layer, x, use_reentrant=reentrant)

    compare(*both(False, monkeypatch, wrap=wrap))
    assert quantized_together == [5]


def test_in_chunks(quantized_together, monkeypatch):
    monkeypatch.setattr(weights_ahead, 'CHUNK', 2)
    compare(*both(True, monkeypatch))
    assert quantized_together == [2, 2, 1]


def test_changed_logits_are_seen(quantized_together, monkeypatch):
    """What was handed out for other logits is not used."""
    net = Net(mixed=True)
    x = torch.randn(2, 3, 9, 9)
    net(x)
    monkeypatch.setattr(weights_ahead, 'has_kernels', lambda _: True)
    BatchedRelaxation(net.relaxations, {'composite'}).hand()
    with torch.no_grad():
        for r in net.relaxations:
            r.logits[0] = 9.0
    found = net(x)
    assert quantized_together == [3]  # the mixed ones are not among them
    monkeypatch.setattr(weights_ahead, 'has_kernels', lambda _: False)
    torch.testing.assert_close(net(x), found)


def test_moved_weights_are_seen(quantized_together, monkeypatch):
    net, x = Net(), torch.randn(2, 3, 9, 9)
    net(x)
    monkeypatch.setattr(weights_ahead, 'has_kernels', lambda _: True)
    net(x)
    net.stem.weight.data = net.stem.weight.detach() * 3
    net.head.w_quantizer.range.data = net.head.w_quantizer.range.detach() * 2
    found = net(x)
    monkeypatch.setattr(weights_ahead, 'has_kernels', lambda _: False)
    torch.testing.assert_close(net(x), found)


def test_no_cpu_weight_is_served():
    assert not weights_ahead.has_kernels(torch.randn(3, 3))
    layer = QuantConv2d(3, 3, 1, w_bits=4, a_bits=4)
    watch_passes(layer)
    layer(torch.randn(1, 3, 4, 4)).sum().backward()
    assert layer._weight_ahead is None
