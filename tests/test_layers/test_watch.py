"""Tensors by the place where a forward makes them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmmpq.layers.watch import Watch, parts_of


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True)

    def forward(self, x):
        out = self.relu(self.conv(x))
        out += x
        return self.relu(out) + F.max_pool2d(x, 1) + out.shape[0]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(Block(), Block())
        self.head = nn.Sequential(nn.Conv2d(2, 1, 1))

    def forward(self, x):
        x = self.body(x) * 2
        return self.head(x), self.head[0](x), self.head[0](x + 1)


def watched(net, see):
    watch = Watch(see)
    for name, module, composed in parts_of(net):
        watch.add(name, module, composed, inside=composed and name != '')
    return watch


@pytest.fixture
def places():
    return []


@pytest.fixture
def net(places):
    net = Net()
    watched(net, lambda place, x: places.append(place) or x)
    return net


BLOCK = (
    *('.conv[0]', '.relu[0]', '[0].add[0]', '.relu[1]'),
    *('[0].max_pool2d[0]', '[0].add[1]', '[0].add[2]'),
)


def test_what_modules_and_functions_return(net, places):
    net(torch.zeros(1, 2, 4, 4))
    wanted = [f'body.{i}{place}' for i in range(2) for place in BLOCK]
    assert places == [*wanted, 'head.0[0]', 'head.0[1]', 'head.0[2]']


def test_counts_begin_anew(net, places):
    for _ in range(2):
        net(torch.zeros(1, 2, 4, 4))
    assert places[: len(places) // 2] == places[len(places) // 2 :]
    places.clear()
    net.body(torch.zeros(1, 2, 4, 4))
    net.body(torch.zeros(1, 2, 4, 4))
    assert places[:14] == places[14:]


def test_what_is_seen_may_be_replaced():
    net = Net()
    x = torch.randn(1, 2, 4, 4)
    plain = copy.deepcopy(net)
    watched(net, lambda place, x: x * 0 if place == 'body.1.relu[1]' else x)
    twin = copy.deepcopy(net)
    block = plain.body[1]
    y = plain.body[0](x)
    wanted = plain.head((F.max_pool2d(y, 1) + 1) * 2)
    assert torch.equal(net(x)[0], wanted)
    assert torch.equal(twin(x)[0], wanted)
    assert block(y).shape == y.shape


def test_a_call_that_fails(net, places):
    with pytest.raises(RuntimeError):
        net(torch.zeros(1, 3, 4, 4))
    places.clear()
    _ = torch.zeros(2) + 1
    assert places == []
    net(torch.zeros(1, 2, 4, 4))
    assert places[0] == 'body.0.conv[0]'
