"""Searches of nets with activation checkpointing are those of nets without."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointFunction, checkpoint

import mmmpq
from mmmpq.search import Search
from mmmpq.search.reach import STEPS


class Block(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.conv = nn.Conv2d(i, o, 3, padding=1)
        self.norm = nn.BatchNorm2d(o)
        self.kind = None

    def forward(self, x):
        if self.kind is None:
            return self._inner(x)
        return checkpoint(self._inner, x, use_reentrant=self.kind)

    def _inner(self, x):
        return self.norm(self.conv(x)).relu()


def supernet(**quant):
    torch.manual_seed(0)
    blocks = [Block(4, 8), Block(8, 8)]
    stem, head = nn.Conv2d(3, 4, 3), nn.Linear(8, 4)
    net = nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    quant = {'groups': 'layer', 'ends': 'fixed', **quant}
    mmmpq.quantize(net, ['W2A2', 'W4A4', 'W8A8'], **quant)
    mmmpq.calibrate(net, [torch.randn(8, 3, 8, 8)])
    return net


def searched(net, kind, joint):
    """The logits after some iterations, each with a step of the weights."""
    net = copy.deepcopy(net)
    for block in (net[1], net[2]):
        block.kind = kind
    said = []
    search = Search(net, ['W3A3'], input_shape=(3, 8, 8), joint=joint, log=said.append)
    weights = torch.optim.SGD(net.parameters(), 0.05)
    generator = torch.Generator().manual_seed(1)

    def loss():
        x = torch.randn(8, 3, 8, 8, generator=generator)
        return F.cross_entropy(net(x), torch.arange(8) % 4)

    search.begin(10)
    for i in range(10):
        search.draw(i)
        if search.is_due(i) and not joint:
            search.step(i, loss)
        weights.zero_grad()
        with search.mixing(i):
            task = loss()
            task.backward()
        if search.is_due(i) and joint:
            search.gather(task)
            search.joint_step(i)
        weights.step()
    return torch.cat(search.space.logits).detach(), said


@pytest.mark.parametrize('joint', [False, True])
@pytest.mark.parametrize('kind', [True, False])
@pytest.mark.parametrize('mixing', ['composite', 'outputs', 'sampled'])
def test_same_logits(mixing, kind, joint):
    net = supernet(mixing=mixing)
    plain, _ = searched(net, None, joint)
    found, said = searched(net, kind, joint)
    torch.testing.assert_close(found, plain)
    assert not [line for line in said if 'no gradient' in line]
    from torch.utils import checkpoint as module

    assert module.CheckpointFunction is CheckpointFunction


def test_groups_without_a_gradient_are_named():
    net = supernet()
    forward = net[2].forward
    net[2].forward = lambda x: forward(x.detach()).detach() + x.mean(1, keepdim=True)
    said = []
    search = Search(net, ['W3A3'], input_shape=(3, 8, 8), warmup=0, log=said.append)
    search.begin(STEPS + 2)
    for i in range(STEPS + 2):
        search.draw(i)
        x = torch.randn(8, 3, 8, 8)
        search.step(i, lambda x=x: F.cross_entropy(net(x), torch.arange(8) % 4))
    (line,) = [line for line in said if 'no gradient' in line]
    assert 'reached 1 of 3 groups' in line
    assert '2.conv' in line
