"""Quantized weights are computed once, and never stale."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmmpq.layers import MixedConv2d, QuantConv2d, watch_passes

CANDIDATES = [(2, 2), (4, 4), (8, 4)]


class Shared(nn.Module):
    """A layer called three times, as a head over three levels is."""

    def __init__(self, layer, checkpointed=False):
        super().__init__()
        self.layer = layer
        self.checkpointed = checkpointed

    def forward(self, *xs):
        if self.checkpointed:
            return sum(checkpoint(self.layer, x, use_reentrant=False).sum() for x in xs)
        return sum(self.layer(x).square().sum() for x in xs)


def fixed():
    return QuantConv2d(3, 4, 3, w_bits=3, a_bits=4)


def mixed(mixing):
    return lambda: MixedConv2d(3, 4, 3, candidates=CANDIDATES, mixing=mixing)


LAYERS = {'fixed': fixed, **{m: mixed(m) for m in ('composite', 'outputs', 'sampled')}}


@pytest.fixture
def counted(monkeypatch):
    """Counts how often a layer's weights are quantized."""

    def count(layer):
        calls = []
        for name in ('forward', 'mix'):
            before = getattr(layer.w_quantizer, name)

            def call(*args, before=before):
                calls.append(1)
                return before(*args)

            monkeypatch.setattr(layer.w_quantizer, name, call)
        return calls

    return count


@pytest.fixture(params=LAYERS)
def layer(request):
    layer = LAYERS[request.param]()
    if request.param == 'sampled':
        layer.relaxation.choice = 1
    xs = [torch.randn(2, 3, 8, 8) for _ in range(3)]
    layer(xs[0])
    return layer, xs, 2 if request.param == 'outputs' else 1


def test_shared_layer_quantizes_once_and_gets_the_same_gradients(layer, counted):
    layer, xs, once = layer
    wanted = Shared(copy.deepcopy(layer))
    wanted(*xs).backward()
    model = Shared(layer)
    watch_passes(model)
    calls = counted(layer)
    for step in range(3):
        calls.clear()
        model.zero_grad()
        loss = model(*xs)
        loss.backward()
        # the first pass finds out at its second call
        assert len(calls) == (2 * once if step == 0 else once)
    for p, q in zip(model.parameters(), wanted.parameters(), strict=True):
        if q.grad is not None:  # sums in another order
            tolerance = 1e-5 * float(q.grad.abs().max())
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=tolerance)


def test_a_pass_of_its_own_for_each_backward(layer):
    """Two losses before their two backward passes share no graph."""
    layer, xs, _ = layer
    model = Shared(layer)
    watch_passes(model)
    for _ in range(2):
        one, two = model(*xs), model(*xs)
        one.backward()
        two.backward()


def test_new_weights_and_ranges_are_seen(layer):
    layer, xs, _ = layer
    model = Shared(layer)
    watch_passes(model)
    for training in (True, False):
        model.train(training)
        with torch.set_grad_enabled(training):
            for change in (layer.weight, *layer.w_quantizer.parameters()):
                before = model(*xs).item()
                with torch.no_grad():
                    change.mul_(1.7)
                assert model(*xs).item() != before


def test_evaluation_quantizes_once(layer, counted):
    layer, xs, once = layer
    layer.eval()
    calls = counted(layer)
    with torch.no_grad():
        outs = [layer(xs[0]) for _ in range(4)]
    assert len(calls) == once
    assert all(torch.equal(outs[0], out) for out in outs)
    with torch.no_grad():
        layer.weight.data.mul_(2)  # not seen by version counters: EMA swaps like this
        layer.train().eval()
        assert not torch.equal(layer(xs[0]), outs[0])


def test_logits_and_path_are_seen():
    x = torch.randn(2, 3, 8, 8)
    for mixing in ('composite', 'outputs'):
        layer = mixed(mixing)().eval()
        layer(x)
        with torch.no_grad():
            before = layer(x)
            layer.relaxation.logits[0] += 2
            assert not torch.equal(layer(x), before)
    layer = mixed('sampled')().eval()
    outs = []
    with torch.no_grad():
        for layer.relaxation.choice in (0, 1, 0):
            outs.append(layer(x))
    assert torch.equal(outs[0], outs[2])
    assert not torch.equal(outs[0], outs[1])


def test_activation_checkpointing(layer):
    layer, xs, _ = layer
    model = Shared(layer, checkpointed=True)
    watch_passes(model)
    for _ in range(2):
        model.zero_grad()
        model(*xs).backward()
    plain = Shared(copy.deepcopy(layer))
    plain.zero_grad()
    sum(plain.layer(x).sum() for x in xs).backward()
    wanted = plain.layer.weight.grad
    torch.testing.assert_close(layer.weight.grad, wanted, rtol=1e-4, atol=1e-4)


def test_copies_in_the_middle_of_a_pass():
    layer = fixed()
    model = Shared(layer)
    watch_passes(model)
    xs = [torch.randn(1, 3, 8, 8)] * 3
    for _ in range(2):
        loss = model(*xs)
        copy.deepcopy(model)
        loss.backward()
