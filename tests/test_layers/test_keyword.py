"""Layers, norms and blocks called by keyword give what they give by position."""

import copy

import pytest
import torch
from mmengine.model import BaseModel
from torch import nn

from mmmpq import apply_policy, calibrate, quantize
from mmmpq.baselines.hessian import quantization_errors, traces
from mmmpq.costs import profile
from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.integer_check import checking
from mmmpq.policy import Policy, Precision
from mmmpq.search import SearchSpace


def position(module, x):
    return module(x)


def keyword(module, x):
    return module(x=x) if isinstance(module, Block) else module(input=x)


class Block(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call
        self.conv1, self.conv2 = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.norm, self.downsample = nn.BatchNorm2d(4), None

    def forward(self, x):
        out = self.call(self.norm, self.call(self.conv1, x)).relu()
        return (self.call(self.conv2, out) + x).relu()


class Net(BaseModel):
    def __init__(self, call=position):
        super().__init__()
        self.call = call
        self.stem = nn.Conv2d(3, 4, 3)
        self.block = Block(call)
        self.fc = nn.Linear(4, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        x = self.call(self.block, self.call(self.stem, inputs).relu())
        x = self.call(self.fc, x.mean((2, 3)))
        return dict(loss=x.square().mean()) if mode == 'loss' else x


def twins(**quant):
    torch.manual_seed(0)
    one = Net()
    other = Net(keyword)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    torch.manual_seed(1)
    x = torch.randn(2, 3, 8, 8)
    for net in (one, other):
        if quant:
            quantize(net, **quant)
            calibrate(net, [dict(inputs=x)])
    return one, other, x


def grads(net, x):
    net.zero_grad()
    net(x).square().sum().backward()
    return [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    'quant',
    [
        dict(policy='W4A4'),
        dict(candidates=['W2A2', 'W4A4']),
        dict(candidates=['W2A2', 'W4A4'], mixing='outputs'),
        dict(candidates=[(0, 0), 'W4A4']),
        dict(candidates=[(0, 0), 'W4A4'], mixing='sampled'),
    ],
)
def test_outputs_and_gradients(quant):
    one, other, x = twins(**quant)
    for each in (one, other):
        each.train()
    assert torch.equal(one(x), other(x))
    for a, b in zip(grads(one, x), grads(other, x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('bits', [(0, 0), (4, 4)])
def test_a_policy_of_a_block(bits):
    one, other, x = twins(candidates=[(0, 0), 'W4A4'])
    chosen = dict.fromkeys(('block.conv1', 'block.conv2'), Precision(*bits))
    fixed = dict.fromkeys(('stem', 'fc'), Precision(8, 8))
    for net in (one, other):
        apply_policy(net.eval(), Policy(dict(fixed, **chosen)))
    assert torch.equal(one(x), other(x))


def test_profile():
    one, other, _ = twins()
    assert profile(one, (3, 8, 8)) == profile(other, (3, 8, 8))


def test_fold_and_integers():
    one, other, x = twins(policy='W4A4')
    for net in (one, other):
        net.eval()
        assert list(fold_batchnorm(net, (3, 8, 8)).folded) == ['block.norm']
        with checking(net) as checks, torch.no_grad():
            net(x)
        assert all(c.calls == 1 and c.deviation < 1e-5 for c in checks.values())
    assert torch.equal(one(x), other(x))


def test_hessian():
    one, other, x = twins(candidates=['W2A2', 'W4A4'], groups='layer')
    found = []
    for net in (one, other):
        space, batches = SearchSpace(net), [dict(inputs=x)]
        found.append(traces(net, space, batches, vectors=2))
        found.append(quantization_errors(net, space, batches))
    assert found[0] == found[2] and sum(found[0].inputs.values()) > 0
    assert str(found[1]) == str(found[3])
