"""Learned rounding against brute force, and rows against layers themselves."""

from itertools import product

import pytest
import torch
from torch import nn

from mmmpq.layers import QuantConv2d, QuantLinear, float_mode
from mmmpq.models import quantize
from mmmpq.post_training import settle
from mmmpq.post_training.pipeline import prepare
from mmmpq.post_training.rounding import (
    bias_of,
    error_of,
    held_out,
    learn_rounding,
    refitted,
)
from mmmpq.post_training.rows import Gram, grams_of, outputs_of, pooled


def gram(x, y):
    """Of inputs (rows, d) and outputs (rows, C)."""
    a, b = x - x.mean(0), y - y.mean(0)
    parts = a.T @ a, a.T @ b, (b * b).sum(0)
    parts = [p[None] / len(x) for p in parts]
    return Gram(*parts, x.mean(0)[None, None], y.mean(0)[None, None], len(x))


def error(weight, g):
    return error_of(weight.T[None], g)[0]


def test_refitted_weights_are_the_least_squares():
    torch.manual_seed(0)
    x = torch.randn(20_000, 4) @ torch.randn(4, 4)
    wanted = torch.randn(3, 4)
    g = gram(x, x @ wanted.T)
    found = refitted(torch.zeros(3, 4), g, 0.0)
    # The ridge is .01 of the mean variance of an input.
    ridge = 0.01 * g.xx[0].diagonal().mean() * torch.eye(4)
    closed = torch.linalg.solve(g.xx[0] + ridge, g.xx[0] @ wanted.T).T
    torch.testing.assert_close(found, closed, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(refitted(wanted, g, 0.0), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('seed', range(5))
def test_no_single_weight_can_be_bettered_and_few_weights_are_optimal(seed):
    torch.manual_seed(seed)
    mix = torch.randn(4, 4)
    x = (torch.randn(20_000, 4) @ mix).relu()
    w = torch.randn(3, 4)
    step = w.abs().amax(1, keepdim=True) / 3
    g = gram(x, x @ w.T)
    zero, levels = torch.zeros(3, 1), (-3, 3)
    found = learn_rounding(w, step, zero, levels, g)
    nearest = (w / step).round() * step
    q = found / step
    assert torch.equal(q.round().clamp(*levels), q)
    assert (error(found, g) <= error(nearest, g) * 1.02).all()
    grid = torch.tensor(list(product(range(-3, 4), repeat=4))).float()
    for c in range(3):
        best = min(float(error(k[None] * step[c], one(g, c))) for k in grid)
        ours = float(error(found, g)[c])
        moved = min(
            float(error((q[c] + d)[None] * step[c], one(g, c)))
            for d in (*torch.eye(4), *-torch.eye(4))
            if (q[c] + d).abs().max() <= 3
        )
        assert ours <= moved * 1.02
        assert ours <= 2 * best + 1e-6


def one(g, c):
    """What is known of one output channel."""
    y = slice(c, c + 1)
    return g._replace(xy=g.xy[..., y], yy=g.yy[:, y], y=g.y[..., y])


def test_few_samples_leave_the_nearest():
    x = torch.randn(2, 64)
    w = torch.randn(5, 64)
    step = w.abs().amax(1, keepdim=True) / 7
    zero = torch.zeros(5, 1)
    g = gram(x, x @ w.T)
    found = learn_rounding(w, step, zero, (-7, 7), g)
    nearest = (w / step).round() * step
    assert (found - w).abs().max() <= 2 * (nearest - w).abs().max() + 1e-6
    same = learn_rounding(nearest, step, zero, (-7, 7), gram(x, x @ nearest.T))
    assert torch.equal(same, nearest)


@pytest.mark.parametrize(
    ('rows', 'steps', 'expected'),
    [
        # Few samples, of which each half says otherwise: the ridge that leaves w there,
        # round(0.8 / (1 + 0.01 + 2.5)) = 0.
        (8, (0.8, -0.8), 2.5),
        # Both say the same: the ridge that lets w go there, round(2 / 1.11) = 2.
        (8, (2.0, 2.0), 0.1),
        # So many samples that all of them decide the same.
        (10**6, (0.8, -0.8), 0.1),
        (8, (0.8,), 0.1),
    ],
)
def test_the_ridge_is_that_which_serves_other_images(rows, steps, expected):
    """Of inputs that know nothing of each other, outputs a count of steps from w x."""
    w, zero = torch.zeros(3, 8), torch.zeros(3, 1)
    eye, none = torch.eye(8)[None], torch.zeros(1, 1, 8)
    folds = []
    for k in steps:
        xy = torch.full((1, 8, 3), 0.5 * k)
        folds.append(Gram(eye, xy, xy.square().sum(1), none, none[..., :3], rows))
    step = torch.full((3, 1), 0.5)
    assert held_out(w, step, zero, (-7, 7), folds) == expected


def test_grams_of_parts_are_that_of_the_whole():
    x, y = torch.randn(50, 6) + 2, torch.randn(50, 3) - 1
    whole = pooled([gram(x[:13], y[:13]), gram(x[13:], y[13:])])
    for found, expected in zip(whole, gram(x, y), strict=True):
        torch.testing.assert_close(found, expected)


LAYERS = {
    'plain': (nn.Conv2d(6, 4, 3, padding=1, stride=2), (3, 6, 9, 8)),
    'depthwise': (nn.Conv2d(6, 12, 3, groups=6, dilation=2), (3, 6, 9, 8)),
    'same': (nn.Conv2d(6, 4, (3, 4), padding='same'), (3, 6, 9, 8)),
    'circular': (nn.Conv2d(6, 4, 3, padding=1, padding_mode='circular'), (3, 6, 9, 8)),
    'linear': (nn.Linear(7, 5), (3, 4, 7)),
}


@pytest.mark.parametrize('name', LAYERS)
def test_rows_are_what_the_layer_is_linear_in(name):
    float_layer, shape = LAYERS[name]
    kind = QuantLinear if isinstance(float_layer, nn.Linear) else QuantConv2d
    net = nn.Sequential(float_layer)
    kind.from_float(net[0], w_bits=8, a_bits=32)
    batches = [torch.randn(shape) + 2 for _ in range(3)]
    with float_mode(net):
        targets = outputs_of(net, {'0': net[0]}, batches)['0']
        g = pooled(grams_of(net, '0', net[0], batches, targets))
        y = torch.cat([net(x) for x in batches]).detach()
    y = y if name == 'linear' else y.movedim(1, -1)
    y = y.reshape(-1, y.shape[-1])
    assert g.rows == len(y)
    torch.testing.assert_close(g.y.flatten(), y.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        g.yy.flatten(), y.var(0, unbiased=False), rtol=1e-3, atol=1e-3
    )
    w = net[0].weight.detach().reshape(len(g.xx), -1, g.xx.shape[1]).transpose(1, 2)
    assert error_of(w, g).max() < 1e-4 * g.yy.max()
    torch.testing.assert_close(
        bias_of(net[0].weight, g), net[0].bias.detach(), rtol=1e-3, atol=1e-3
    )


class Net(nn.Module):
    """A norm that can be folded, one that cannot, and inputs with a mean."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.norm = nn.BatchNorm2d(16)
        self.after = nn.BatchNorm2d(16)
        self.last = nn.Conv2d(16, 8, 3)
        for norm in (self.norm, self.after):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.last(self.after(self.norm(self.conv(x)).relu()).relu())


def test_outputs_come_back_to_those_of_the_float_net():
    """Means, and at three bits much of what rounding to the nearest leaves."""
    left = {}
    batches = [torch.rand(4, 3, 16, 16) for _ in range(2)]
    for rounding in ('none', 'nearest', 'learned'):
        torch.manual_seed(0)
        net = Net().eval()
        wanted = torch.cat([net(x) for x in batches]).detach()
        folded, _ = prepare(net, batches, dict(policy='W3A8', fixed={'*': None}))
        assert list(folded.folded) == ['norm'] and 'after' in folded.unfolded
        if rounding != 'none':
            settle(net, batches, rounding)
        found = torch.cat([net(x) for x in batches]).detach()
        shift = (found - wanted).mean((0, 2, 3)).abs().max() / wanted.std()
        left[rounding] = float((found - wanted).var() / wanted.var()), float(shift)
    assert max(left['nearest'][1], left['learned'][1]) < 0.3 * left['none'][1]
    assert left['learned'][0] < 0.7 * left['nearest'][0]


def test_weights_of_any_quantizer_end_on_their_grid():
    for kind in ('LSQQuantizer', 'DoReFaQuantizer', 'GaussianQuantizer'):
        torch.manual_seed(0)
        net = Net().eval()
        batches = [torch.rand(4, 3, 16, 16)]
        prepare(net, batches, dict(policy='W4A8', w_quantizer=dict(type=kind)))
        settle(net, batches)
        for layer in (net.conv, net.last):
            bits = layer.precision.w_bits
            assert torch.equal(layer.w_quantizer(layer.weight, bits), layer.weight)


def test_quantize_is_not_needed_first():
    with pytest.raises(ValueError, match='images: found none'):
        prepare(quantize(Net(), policy='W8A8'), [])
