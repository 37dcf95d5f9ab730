"""The CIFAR ResNets against the facts of their paper."""

import pytest
import torch

pytest.importorskip('mmpretrain')

from mmmpq.models.backbones.cifar_resnet import CifarResNet, PadShortcut


def parameters(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ('depth', 'total'), [(20, 269722), (32, 464154), (44, 658586), (56, 853018)]
)
def test_parameter_count(depth, total):
    # 0.27, 0.46, 0.66 and 0.85 million in table 6 of arXiv 1512.03385
    assert parameters(CifarResNet(depth)) + 64 * 10 + 10 == total


def test_layers_and_shapes():
    net = CifarResNet(20)
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == 19  # and the classifier makes 20
    (out,) = net(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, 64, 8, 8)


def test_macs():
    net = CifarResNet(20)
    macs = []
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda m, _, y: macs.append(m.weight.numel() * y[0, 0].numel())
            )
    net(torch.randn(1, 3, 32, 32))
    stem, stage = 27 * 16 * 1024, 144 * 16 * 1024  # a conv costs alike in each stage
    assert sum(macs) == stem + stage * (6 + 5 + 5) + 2 * stage // 2


def test_shortcut_slices_and_pads():
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    y = PadShortcut(3, 2)(x)
    assert y.shape == (1, 5, 2, 2)
    assert torch.equal(y[:, :2], x[:, :, ::2, ::2])
    assert not y[:, 2:].any()


def test_unknown_depth():
    with pytest.raises(ValueError, match=r'depth=18.*\(20, 32, 44, 56\)'):
        CifarResNet(18)
