"""benchmarks/peers.py: the net that others trace, and differences in pairs."""

import numpy as np
import pytest
import torch
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from torch import nn


@pytest.fixture
def peers():
    import peers

    return peers


class Net(nn.Sequential):
    def forward(self, x, mode):
        return super().forward(x)


@pytest.mark.parametrize('size', [(9, 12), (8, 15)])
def test_paddings_are_written_out(peers, size):
    layers = [
        Conv2dAdaptivePadding(3, 4, 3, stride=2),
        Conv2dAdaptivePadding(4, 4, 5, dilation=2, groups=4),
        nn.Conv2d(4, 2, 1),
    ]
    net, x = Net(*layers).eval(), torch.randn(2, 3, *size)
    wanted = net(x, mode='tensor')
    plain = peers.Plain(net, x)
    assert torch.fx.symbolic_trace(plain) and torch.equal(plain(x), wanted)


def test_pairs_are_of_the_same_image(peers):
    reference = np.eye(4, dtype=np.float32)
    logits = reference[[0, 1, 2, 0]]  # three of four agree
    own = peers.compared(reference, dict(name='ours', logits=reference), None)
    row = peers.compared(reference, dict(name='other', logits=logits), own)
    assert row['agreement'][0] == 75 and row['ours_ahead'][0] == 25
    assert row['ours_ahead'][1] == pytest.approx(1.96 * 50 / 2)
    peers.table([dict(r, weight_bytes=8, seconds=1) for r in (own, row)])
