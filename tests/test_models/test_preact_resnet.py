"""The ResNet of EdMIPS against its published layout, and the facts behind it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip('mmpretrain')

from mmmpq.costs import profile
from mmmpq.models.backbones.preact_resnet import PreActResNet
from mmmpq.quantizers.gaussian import HALF_WAVE


def by_hand(block, x):
    """Of a block with BatchNorms that use the batch."""

    def norm(x, bn):
        mean = x.mean((0, 2, 3), True)
        var = (x - mean).square().mean((0, 2, 3), True)
        shape = 1, -1, 1, 1
        x = (x - mean) / (var + bn.eps).sqrt()
        return x * bn.weight.reshape(shape) + bn.bias.reshape(shape)

    first = out = F.relu(norm(x, block.bn0))
    convs = [c for n, c in block.named_children() if n.startswith('conv')]
    for k, conv in enumerate(convs, 1):
        out = F.conv2d(out, conv.weight, None, conv.stride, conv.padding)
        out = norm(out, getattr(block, f'bn{k}'))
        out = F.relu(out) if k < len(convs) else out
    if block.downsample is None:
        return x + out
    conv, bn = block.downsample
    return norm(F.conv2d(first, conv.weight, None, conv.stride), bn) + out


@pytest.mark.parametrize('depth', [18, 50])
@pytest.mark.parametrize('with_cp', [False, True])
def test_a_block_normalises_first(depth, with_cp):
    torch.manual_seed(0)
    net = PreActResNet(depth, with_cp=with_cp)
    for bn in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(bn.weight, 0.5, 1.5)
        nn.init.uniform_(bn.bias, -0.5, 0.5)
    x = torch.randn(2, net.layer1[0].in_channels, 6, 6, requires_grad=True)
    for block in net.layer1:
        expected = by_hand(block, x)
        assert torch.allclose(block(x), expected, atol=1e-5)
        x = expected
    first = net.layer2[0]
    assert torch.allclose(first(x), by_hand(first, x), atol=1e-5)


def test_the_stem_pools_before_it_normalises_and_the_end_is_a_relu():
    net = PreActResNet(18)
    net.eval()
    x = torch.randn(1, 3, 64, 64)
    y = net.bn1(net.maxpool(net.conv1(x)))
    for name in net.res_layers:
        y = getattr(net, name)(y)
    (out,) = net(x)
    assert torch.equal(out, y.relu())
    assert out.shape == (1, 512, 2, 2)


@pytest.mark.parametrize(('depth', 'parameters'), [(18, 11_176_512), (50, 23_508_032)])
def test_it_has_a_resnet_s_parameters_and_a_norm_more_a_block(depth, parameters):
    # Those of torchvision's resnet18 and resnet50 without their classifiers.
    net = PreActResNet(depth)
    more = sum(
        p.numel() for n, p in net.named_parameters() if n.split('.')[-2] == 'bn0'
    )
    assert sum(p.numel() for p in net.parameters()) - more == parameters


def test_penalty_of_resnet18_is_the_published_one():
    layers = profile(PreActResNet(18), (3, 224, 224))
    macs = [x.macs for x in layers if x.name != 'conv1']
    assert sum(macs) / macs[0] == pytest.approx(14.667, abs=1e-3)


def test_inputs_of_convolutions_have_the_variance_that_the_grid_assumes():
    # Of a half-wave, 2 bits clip P(x > 3 s) / P(x > 0) = 10.7 %.
    top = 3 * HALF_WAVE[2]
    expected = 1 - torch.erf(torch.tensor(top / 2**0.5))
    torch.manual_seed(0)
    net, clipped = PreActResNet(18, base_channels=16, stem_channels=16), []

    def note(conv, args):
        positive = args[0][args[0] > 0]
        clipped.append(float((positive > top).float().mean()))

    for stage in net.res_layers:
        for block in getattr(net, stage):
            block.conv1.register_forward_pre_hook(note)
    net(torch.randn(8, 3, 128, 128))
    # The first reads maxima, which are not normal.
    assert clipped[1:] == pytest.approx([float(expected)] * 7, abs=0.02)


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (dict(depth=20), r'depth=20: PreActResNet accepts \(18, 34, 50'),
        (dict(depth=18, deep_stem=True), 'deep_stem'),
    ],
)
def test_what_it_is_not(given, message):
    with pytest.raises(ValueError, match=message):
        PreActResNet(**given)
