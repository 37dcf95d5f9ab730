"""Under torch.compile and torch.export layers compute what they compute without."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mmmpq
from mmmpq.quantizers import functional
from mmmpq.search import Search

FULL = dict(backend='aot_eager', fullgraph=True)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled_once():
    """Within it nothing may be compiled anew."""
    return torch._dynamo.config.patch(error_on_recompile=True)


def problem(levels, offset, probs, divisors, gradient, dtype=torch.float32):
    torch.manual_seed(0)
    m = len(levels)
    x = torch.randn(3, 5, 4, 4, dtype=dtype).requires_grad_()
    scale = torch.rand((m, 1) if divisors else (m,)) * 0.3 + 0.05
    return (
        x,
        scale.requires_grad_(),
        torch.rand(m).requires_grad_() if offset else None,
        torch.softmax(torch.randn(m), 0).requires_grad_() if probs else None,
        [b for level in levels for b in (level or (1, -1))],
        [0.5 + j for j in range(m)],
        gradient,
        [2.0 + j for j in range(m)] if divisors else [],
    )


@pytest.mark.parametrize(
    'case',
    [
        ([(-7, 7)], False, False, True, 'lsq'),
        ([(0, 3), None, (0, 15)], True, True, False, 'clip'),
        ([(-1, 1), (-8, 7)], False, True, False, 'identity', torch.bfloat16),
    ],
)
def test_operator_is_what_torch_asks_of_one(case):
    torch.library.opcheck(torch.ops.mmmpq.fake_quantize, problem(*case))


def net(**quant):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    made = nn.Sequential(*layers)
    mmmpq.quantize(made, groups='layer', **quant)
    mmmpq.calibrate(made, [batch(0)])
    return made


def batch(i):
    return torch.randn(8, 3, 9, 9, generator=torch.Generator().manual_seed(i))


def trained(model, compiled, steps=3):
    """Losses and parameters of some steps."""
    model = copy.deepcopy(model)
    forward = torch.compile(model, **FULL) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for i in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(batch(i)), torch.arange(8) % 4)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), list(model.parameters())


@pytest.mark.parametrize('quantizer', ['LinearQuantizer', 'LSQQuantizer'])
@pytest.mark.parametrize('kernels', ['native', 'plain'])
def test_training_at_fixed_precision(quantizer, kernels, monkeypatch):
    if kernels == 'plain':
        monkeypatch.setattr(functional, '_kernels', lambda *_: None)
    model = net(policy='W3A4', quantizer=dict(type=quantizer))
    with compiled_once():
        found = trained(model, True)
    torch.testing.assert_close(found, trained(model, False))


def searched(mixing, compiled):
    """The logits after a search."""
    model = net(candidates=['W2A2', 'W4A4', 'W8A8'], mixing=mixing)
    forward = torch.compile(model, backend='aot_eager') if compiled else model
    search = Search(model, ['W3A3'], input_shape=(3, 9, 9), log=lambda _: None)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def loss(i):
        return F.cross_entropy(forward(batch(i)), torch.arange(8) % 4)

    def step(i):
        search.draw(i)
        if search.is_due(i):
            search.step(i, lambda: loss(100 + i))
        optimizer.zero_grad()
        with search.mixing(i):
            loss(i).backward()
        optimizer.step()

    search.begin(8)
    for i in range(3):
        step(i)
    with compiled_once():
        for i in range(3, 8):
            step(i)
    return torch.cat(search.space.logits).detach()


@pytest.mark.parametrize('mixing', ['composite', 'outputs', 'sampled'])
def test_search(mixing):
    torch.testing.assert_close(searched(mixing, True), searched(mixing, False))


def test_export():
    model = net(policy='W3A4').eval()
    program = torch.export.export(model, (batch(0),))
    torch.testing.assert_close(program.module()(batch(1)), model(batch(1)))
