"""Folded BatchNorms against the formula, and nets against themselves before."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.conv_ws import ConvAWS2d, ConvWS2d
from mmengine.runner import load_checkpoint
from torch import nn

from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.integers import weight_integers, weight_levels
from mmmpq.export.packed import load_packed, save_packed
from mmmpq.layers import QuantConv2d, quantized_layers
from mmmpq.models.loading import Folded, watch_loading
from mmmpq.policy import SKIP, Policy, Precision

QUANTIZERS = {
    'per tensor': dict(type='LinearQuantizer'),
    'per channel': dict(type='LinearQuantizer', per_channel=True),
    'asymmetric': dict(type='LSQQuantizer'),
    'no zero': dict(type='DoReFaQuantizer'),
    'half': dict(type='GaussianQuantizer'),
    'plus': dict(type='LSQPlusQuantizer', per_channel=True),
}
GAMMA = torch.tensor([1.5, -0.5, 0.0, 2.0, -1e-3, 30.0])


class Net(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x):
        return self.norm(self.conv(x)).relu_()


def net(bits, w_quantizer=None, **more):
    layer = QuantConv2d(4, 6, 3, w_bits=bits, a_bits=4, w_quantizer=w_quantizer, **more)
    layer.calibrate([torch.randn(300)])
    model = Net(layer).eval()
    with torch.no_grad():
        model.norm.weight.copy_(GAMMA)
        model.norm.bias.normal_()
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.1, 3)
    return model


@pytest.mark.parametrize('name', QUANTIZERS)
@pytest.mark.parametrize('bits', [2, 3, 8])
@pytest.mark.parametrize('bias', [False, True])
def test_folding_is_exact(name, bits, bias):
    model = net(bits, QUANTIZERS[name], bias=bias)
    x = torch.randn(3, 4, 9, 9)
    wanted = model(x)
    low, high = weight_levels(model.conv)
    q, scale, _ = weight_integers(model.conv)
    norm = model.norm
    report = fold_batchnorm(model, (4, 9, 9))
    assert report.folded == {'norm': 'conv'} and report.unfolded == {}
    assert isinstance(model.norm, Folded)
    rounding = 5e-7 * float(wanted.abs().max())  # of sums of larger terms
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=rounding)
    assert 0 <= report.largest == report.deviation['conv'] < 2e-6
    found, folded, _ = weight_integers(model.conv)
    kept = norm.weight != 0
    flipped = low + high - q.int()
    expected = torch.where((norm.weight < 0)[:, None, None, None], flipped, q.int())
    assert torch.equal(found[kept].int(), expected[kept])
    assert low <= int(found.min()) and int(found.max()) <= high
    gain = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
    gain = gain[:, None, None, None]
    assert folded.shape == (6, 1, 1, 1) and (folded > 0).all()
    torch.testing.assert_close(folded, gain * scale, rtol=1e-6, atol=1e-29)


def test_float_layers_fold_too():
    model = Net(nn.Conv2d(4, 6, 3, groups=2)).eval()
    model.norm.running_var.uniform_(0.1, 3)
    x = torch.randn(2, 4, 8, 8)
    wanted = model(x)
    assert fold_batchnorm(model, (4, 8, 8)).folded == {'norm': 'conv'}
    torch.testing.assert_close(model(x), wanted)


@pytest.mark.parametrize('kind', [ConvWS2d, ConvAWS2d])
def test_a_float_layer_that_makes_its_weight_keeps_its_norm(kind):
    """Standardised again, a weight would lose what was folded into it."""
    net = nn.Sequential(kind(3, 4, 3), nn.BatchNorm2d(4)).eval()
    nn.init.uniform_(net[1].weight, 0.5, 2)
    x = torch.randn(2, 3, 8, 8)
    wanted = net(x)
    report = fold_batchnorm(net, (3, 8, 8))
    assert report.unfolded == {'1': '0 computes more than W x + b'}
    assert torch.equal(net(x), wanted)


def test_a_linear_layer_and_a_norm_without_parameters():
    model = nn.Sequential(nn.Linear(5, 3, bias=False), nn.BatchNorm1d(3, affine=False))
    model.eval()[1].running_var.uniform_(0.1, 3)
    x = torch.randn(7, 5)
    wanted = model(x)

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model

        def forward(self, images):
            return self.layers(images.flatten(1))

    fold_batchnorm(Flat(), (5, 1, 1))
    torch.testing.assert_close(model(x), wanted)


class Others(nn.Module):
    """BatchNorms that must stay."""

    def __init__(self):
        super().__init__()
        self.first, self.read_twice, self.shared, self.last = (
            nn.Conv2d(4, 4, 1) for _ in range(4)
        )
        self.before, self.beside, self.one, self.two, self.unused, self.relued = (
            nn.BatchNorm2d(4) for _ in range(6)
        )
        self.batch = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        x = self.first(self.before(x))
        y = self.read_twice(x)
        y = self.beside(y) + y
        y = self.one(self.shared(y)) + self.two(self.shared(y))
        return self.batch(self.last(self.relued(self.first(y).relu())))


def test_what_cannot_be_folded_stays_and_says_why():
    model = Others().eval()
    x = torch.randn(1, 4, 5, 5)
    wanted = model(x)
    report = fold_batchnorm(model, (4, 5, 5))
    assert report.folded == {} and report.largest == 0
    assert report.unfolded == {
        'before': 'it does not follow one conv or linear layer alone',
        'beside': 'read_twice is read by others as well',
        'one': 'shared is read by others as well',
        'two': 'shared is read by others as well',
        'unused': 'the forward does not use it',
        'relued': 'it does not follow one conv or linear layer alone',
        'batch': 'it has no running statistics',
    }
    assert torch.equal(model(x), wanted)


def test_a_layer_called_often_with_one_norm_of_its_own():
    model = nn.Sequential(ConvModule(3, 3, 1, norm_cfg=dict(type='BN'))).eval()
    model.append(model[0])
    model[0].bn.running_mean.normal_()
    x = torch.randn(1, 3, 4, 4)
    wanted = model(x)
    assert fold_batchnorm(model, (3, 4, 4)).folded == {'0.bn': '0.conv'}
    torch.testing.assert_close(model(x), wanted)


def test_a_layer_whose_output_is_returned():
    class Features(Net):
        def forward(self, x):
            y = self.conv(x)
            return dict(features=[y], out=self.norm(y))

    model = Features(nn.Conv2d(4, 6, 3)).eval()
    report = fold_batchnorm(model, (4, 8, 8))
    assert report.unfolded == {'norm': 'conv is read by others as well'}


def test_a_layer_and_its_norm_in_two_places():
    first = Net(nn.Conv2d(6, 6, 1))
    second = Net(first.conv)
    second.norm = first.norm
    model = nn.Sequential(first, second).eval()
    first.norm.running_var.uniform_(0.1, 3)
    x = torch.randn(1, 6, 4, 4)
    wanted = model(x)
    report = fold_batchnorm(model, (6, 4, 4))
    assert report.unfolded == {'0.norm': 'it is in more than one place of the model'}
    assert torch.equal(model(x), wanted)


def test_a_whole_net(classifier, settled, outputs, tmp_path):
    config = classifier(policy='W4A8')
    model = settled(config)
    before = outputs(model)
    twin = copy.deepcopy(model)
    report = fold_batchnorm(model, (3, 32, 32))
    assert len(report.folded) == 10 and not report.unfolded and report.largest < 1e-6
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for one, other in zip(outputs(model), before, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    file = save_packed(model, tmp_path / 'x.safetensors', config)
    loaded = load_packed(file)
    load_checkpoint(twin, str(file), strict=True)
    for net in (loaded, twin):
        assert not net.backbone.conv1.bias.requires_grad  # no optimizer may know it
        assert net.head.fc.bias.requires_grad
        for one, other in zip(outputs(net), outputs(model), strict=True):
            assert torch.equal(one, other)
    plain = save_packed(settled(config), tmp_path / 'y.safetensors', config)
    assert file.stat().st_size < plain.stat().st_size


def test_a_skipped_block_keeps_its_norms(classifier, settled, outputs, tmp_path):
    names = list(quantized_layers(settled(classifier())))
    layers = {n: SKIP if 'layer1.1' in n else Precision(4, 4) for n in names}
    config = classifier(policy=str(Policy(layers).save(tmp_path / 'policy.json')))
    model = settled(config)
    report = fold_batchnorm(model, (3, 32, 32))
    blocks = [f'backbone.layer1.1.bn{i}' for i in (1, 2)]
    assert report.unfolded == dict.fromkeys(blocks, 'its block is skipped')
    loaded = load_packed(save_packed(model, tmp_path / 'x.safetensors', config))
    for one, other in zip(outputs(loaded), outputs(model), strict=True):
        assert torch.equal(one, other)


def test_folded_into_another_net(classifier, settled, tmp_path):
    config = classifier()
    model = settled(config)
    fold_batchnorm(model, (3, 32, 32))
    file = save_packed(model, tmp_path / 'x.safetensors', config)
    other = nn.Sequential(nn.Conv2d(3, 3, 1))
    watch_loading(other)
    with pytest.raises(ValueError, match=r'another model: it has folded backbone\.bn1'):
        load_checkpoint(other, str(file))


def test_refuses_what_is_not_calibrated():
    model = net(4)
    model.conv.a_quantizer.signed.fill_(-1)
    model.conv.a_quantizer.sync_host()
    with pytest.raises(ValueError, match='not calibrated: conv: it has seen no input'):
        fold_batchnorm(model, (4, 9, 9))
    assert isinstance(model.norm, nn.BatchNorm2d)
