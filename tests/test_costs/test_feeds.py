"""What layers hand on, in nets of which it is known."""

import pytest
import torch
import torchvision
from torch import nn

from mmmpq.costs import profile
from mmmpq.costs.feeds import feeds
from mmmpq.models import quantize


class Net(nn.Module):
    """A stem, a residual block, a pool, and a tower that two levels share."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.one = nn.Conv2d(4, 4, 3, padding=1)
        self.pooled = nn.Conv2d(4, 4, 1)
        self.tower = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu_()
        x = (x + self.one(x)).relu()
        small = self.pooled(nn.functional.max_pool2d(x, 2))
        towers = [self.tower(level) for level in (x, small)]
        return [self.head(level) for level in towers]


WANTED = {
    ('stem', 'one', (8, 8), (8, 8), False): 1,
    ('stem', 'tower', (8, 8), (8, 8), True): 0.5,
    ('one', 'tower', (8, 8), (8, 8), True): 0.5,
    ('pooled', 'tower', (4, 4), (4, 4), False): 1,
    ('tower', 'head', (8, 8), (8, 8), False): 1,
    ('tower', 'head', (4, 4), (4, 4), False): 1,
}


@pytest.mark.parametrize('quant', [None, dict(candidates=['W2A2', 'W4A4'])])
def test_sums_are_shared_and_what_changes_shapes_hands_on_nothing(quant):
    net = Net() if quant is None else quantize(Net(), **quant)
    listed = feeds(net, (3, 8, 8))
    assert {
        (f.first, f.second, f.first_size, f.second_size, f.summed): f.inputs
        for f in listed
    } == WANTED


def test_a_chain_of_mobilenet():
    """Each layer reads what the one before it made, alone or in a sum."""
    net = torchvision.models.mobilenet_v2()
    names = [p.name for p in profile(net, (3, 64, 64))]
    listed = feeds(net, (3, 64, 64))
    read = dict.fromkeys(names, 0.0)
    for feed in listed:
        read[feed.second] += feed.inputs
        assert names.index(feed.first) < names.index(feed.second)
    pooled_before = {names[0], 'classifier.1'}
    assert read == {n: float(n not in pooled_before) for n in names}


def test_as_many_as_the_reference_proposals():
    from mmengine.config import Config

    from mmmpq.models import build_model

    cfg = Config.fromfile('configs/bpnas/faster-rcnn_r50_coco.py')
    net = build_model(cfg)
    (between,) = (
        f
        for f in feeds(net, (3, 64, 64), 300)
        if 'shared_fcs' in f.first and 'shared_fcs' in f.second
    )
    assert between.inputs == 300


def test_leaves_the_model_as_it_is():
    net = Net()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    state = {k: v.clone() for k, v in net.state_dict().items()}
    feeds(net, (3, 8, 8))
    after = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    assert hooks == after
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
