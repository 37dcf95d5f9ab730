"""Ranges become level and outputs stay, where that is exact, and nowhere else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmmpq.export.fold import fold_batchnorm
from mmmpq.post_training import ptq
from mmmpq.post_training.equalisation import equalise

SHAPE = 4, 12, 12
LARGE = 12 * torch.finfo(torch.float32).eps


def uneven(net):
    """Channels whose ranges differ by orders of magnitude."""
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight)
            rows = torch.randn(len(layer.weight), *[1] * (layer.weight.dim() - 1))
            layer.weight.data.mul_(rows.exp())
            nn.init.normal_(layer.bias)
    return net.eval()


@torch.no_grad()
def equalised(net, shape=SHAPE):
    """The pairs, and by how much the outputs differ, as a share of the largest."""
    x = torch.randn(3, *shape)
    wanted = net(x)
    pairs = equalise(net, shape)
    return pairs, float((net(x) - wanted).abs().max() / wanted.abs().max())


BETWEEN = {
    'nothing': nn.Identity(),
    'ReLU': nn.ReLU(inplace=True),
    'LeakyReLU': nn.LeakyReLU(0.2),
    'PReLU': nn.PReLU(6),
    'pooling': nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2)),
}


@pytest.mark.parametrize('between', BETWEEN.values(), ids=BETWEEN)
def test_a_pair_has_the_geometric_mean_of_its_ranges(between):
    first, second = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 2)
    net = uneven(nn.Sequential(first, between, second))
    r1 = first.weight.abs().amax((1, 2, 3))
    r2 = second.weight.abs().amax((0, 2, 3))
    bias = first.bias / (r1 / r2).sqrt()
    pairs, error = equalised(net)
    assert pairs == [('0', '2')] and error < LARGE
    level = (r1 * r2).sqrt()
    assert torch.allclose(first.weight.abs().amax((1, 2, 3)), level)
    assert torch.allclose(second.weight.abs().amax((0, 2, 3)), level)
    assert torch.allclose(first.bias, bias)


def test_a_depthwise_chain_has_the_geometric_mean_of_three():
    layers = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 5, 1)
    net = uneven(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]))
    sides = (1, 2, 3), (1, 2, 3), (0, 2, 3)

    def ranges():
        pairs = zip(layers, sides, strict=True)
        return [layer.weight.abs().amax(side) for layer, side in pairs]

    level = torch.stack(ranges()).prod(0) ** (1 / 3)
    pairs, error = equalised(net)
    assert pairs == [('0', '2'), ('2', '4')] and error < LARGE
    for found in ranges():
        assert torch.allclose(found, level, rtol=1e-3)


def test_groups_linear_layers_and_what_is_flattened():
    net = nn.Sequential(
        *(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3, groups=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(5, 3)),
    )
    pairs, error = equalised(uneven(net))
    assert pairs == [('0', '2'), ('2', '6'), ('6', '9')] and error < LARGE
    layers = [net[int(name)] for name in ('6', '9')]
    r1, r2 = (w.weight.abs().amax(d) for w, d in zip(layers, (1, 0), strict=True))
    assert torch.allclose(r1, r2, rtol=1e-3)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return (x + self.two(self.norm(self.one(x)).relu())).relu()


def test_of_residual_blocks_the_inner_pairs_alone():
    net = uneven(nn.Sequential(nn.Conv2d(4, 4, 1), Block(), Block()))
    assert equalise(net, SHAPE) == []  # BatchNorms stand between
    fold_batchnorm(net, SHAPE)
    pairs, error = equalised(net)
    assert pairs == [('1.one', '1.two'), ('2.one', '2.two')] and error < LARGE


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        return F.conv2d(x, (w - w.mean()) / w.std(), self.bias)


class Both(nn.Module):
    """Gives what is between as well, or uses it twice, or a layer twice."""

    def __init__(self, kind):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.three = nn.Conv2d(4, 4, 1)
        self.kind = kind
        if kind == 'shared weight':
            self.three.weight = self.two.weight

    def forward(self, x):
        y = self.one(x).relu()
        z = self.two(y)
        if self.kind == 'returned':
            return torch.cat([y, z])
        if self.kind == 'two readers':
            return z + self.three(y)
        if self.kind == 'two makers':
            return z + self.two(x)
        return z.sigmoid() + self.three(x)


def alone(*between):
    return nn.Sequential(nn.Conv2d(4, 4, 1), *between)


LEFT = {
    'ReLU6': alone(nn.ReLU6(), nn.Conv2d(4, 4, 1)),
    'clip': alone(nn.Hardtanh(0, 4), nn.Conv2d(4, 4, 1)),
    'SiLU': alone(nn.SiLU(), nn.Conv2d(4, 4, 1)),
    'GELU': alone(nn.GELU(), nn.Conv2d(4, 4, 1)),
    'other sides': alone(nn.ReLU(), nn.Linear(12, 4)),
    'pixels': alone(nn.Flatten(), nn.Linear(4 * 144, 4)),
    'changed weight': alone(nn.ReLU(), Standardised(4, 4, 1)),
    'changed weight first': nn.Sequential(Standardised(4, 4, 1), nn.Conv2d(4, 4, 1)),
} | {
    kind: Both(kind)
    for kind in ('returned', 'two readers', 'two makers', 'shared weight')
}


@pytest.mark.parametrize('net', LEFT.values(), ids=LEFT)
def test_others_are_left_as_they_are(net):
    before = {k: v.clone() for k, v in uneven(net).state_dict().items()}
    assert equalise(net, SHAPE) == []
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_dead_channels_stay():
    net = uneven(nn.Sequential(nn.Conv2d(4, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1)))
    net[0].weight.data[0] = 0
    net[2].weight.data[:, 1] = 0
    before = net[0].bias[:2].clone()
    pairs, error = equalised(net)
    assert pairs and error < LARGE and torch.equal(net[0].bias[:2], before)


def test_as_a_step_of_ptq():
    net = uneven(nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 2)))
    images = [torch.randn(4, *SHAPE)]
    quant = dict(policy='W8A8', fixed={'*': None})
    wanted = net(images[0]).detach()
    found = ptq(net, images, quant=quant, input_shape=SHAPE, equalised=True)
    assert found.equalised == [('0', '2')]
    error = (found.model(images[0]) - wanted).var() / wanted.var()
    assert error < 1e-3  # of 8 bits, 30 dB
