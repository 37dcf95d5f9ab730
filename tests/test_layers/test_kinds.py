"""Classes of layers of one's own."""

import copy

import pytest
import torch
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from mmcv.cnn.bricks.conv_ws import ConvAWS2d, ConvWS2d
from mmengine.model import initialize
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn import functional as F

from mmmpq.export.fold import fold_batchnorm
from mmmpq.export.integer_check import checking
from mmmpq.export.integers import weight_integers, weight_levels
from mmmpq.export.onnx.graph import export_onnx
from mmmpq.layers import (
    MixedLayer,
    QuantLayer,
    calibrating,
    float_twin,
    quantizable,
    quantized_layers,
)
from mmmpq.models import apply_policy, quantize
from mmmpq.policy import Policy, Precision
from mmmpq.quantizers import StoredQuantizer
from mmmpq.search import SearchSpace

CANDIDATES = ['W2A2', 'W4A4', 'W8A8']


class Strict(nn.Conv2d):
    """Pads on one side only."""

    def forward(self, x):
        x = F.pad(x, (0, 2, 0, 2))
        return F.conv2d(x, self.weight, self.bias, self.stride) * self.gain


@quantizable
class Lopsided(nn.Conv2d):
    affine = True

    def forward(self, x):
        return super().forward(F.pad(x, (0, 2, 0, 2)))


@quantizable
class Scaled(Strict):
    """Computes in its parent's forward."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.tensor(1.5))


@quantizable
class Centred(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class Affected(nn.Conv2d):
    def forward(self, x):
        return 1.5 * self._conv_forward(x, self.weight, self.bias) + 0.1


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = Lopsided(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.body = Scaled(4, 8, 3)
        self.after = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.middle = Centred(8, 8)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self.after(self.body(self.norm(self.stem(x)).relu()))
        return self.fc(self.middle(self.pool(x).flatten(1)))


def searched(**quant):
    net = quantize(Net(), candidates=CANDIDATES, groups='layer', ends='fixed', **quant)
    x = torch.randn(4, 3, 9, 9)
    with torch.no_grad(), calibrating(net):
        net(x)
    return net, x


@pytest.mark.parametrize('mixing', ['composite', 'outputs', 'sampled'])
def test_own_classes_are_searched(mixing):
    net, x = searched(mixing=mixing)
    assert [g.name for g in SearchSpace(net).groups] == ['body', 'middle']
    assert isinstance(net.body, Scaled) and isinstance(net.body, MixedLayer)
    logits = net.body.relaxation.logits.requires_grad_()
    net.body.relaxation.choice = 1
    net(x).square().sum().backward()
    for tensor in (logits, net.body.weight, net.body.bias, net.body.gain):
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0


def test_what_is_quantized_takes_the_place_of_input_weight_and_bias():
    net, x = searched(mixing='outputs')
    inner = net.norm(net.stem(x)).relu()
    body = net.body
    wanted = 0.0
    for p, (w, a) in zip(body.relaxation.probs(), body.candidates, strict=True):
        padded = F.pad(body.a_quantizer(inner, a), (0, 2, 0, 2))
        out = F.conv2d(padded, body.w_quantizer(body.weight, w), body.bias)
        wanted = wanted + p * out * body.gain
    torch.testing.assert_close(body(inner), wanted, rtol=1e-4, atol=1e-5)
    assert isinstance(body.weight, nn.Parameter) and 'weight' not in vars(body)


def test_a_fixed_layer_agrees_with_its_integers():
    net, x = searched()
    policy = Policy({n: Precision(4, 4) for n in quantized_layers(net)})
    policy.layers.update({n: Precision(8, 8) for n in ('stem', 'fc')})
    apply_policy(net, policy)
    assert isinstance(net.body, QuantLayer) and isinstance(net.body, Scaled)
    copied = copy.deepcopy(net.eval())
    with torch.no_grad():
        torch.testing.assert_close(copied(x), net(x), rtol=0, atol=0)
        with checking(net) as checks:
            net(x)
    assert set(checks) == {'stem', 'fc'}
    assert all(check.share < 1e-5 for check in checks.values())


def test_batchnorm_is_folded_into_what_is_affine():
    net, x = searched()
    apply_policy(net, Policy({n: Precision(8, 8) for n in quantized_layers(net)}))
    with torch.no_grad():
        wanted = net.eval()(x)
        report = fold_batchnorm(net, (3, 9, 9))
        torch.testing.assert_close(net(x), wanted, rtol=1e-4, atol=1e-5)
    assert report.folded == {'norm': 'stem'}
    assert report.unfolded == {'after': 'body computes more than W x + b'}


def test_a_backbone_of_own_convolutions_is_searched_and_exported(tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    MODELS.register_module(module=quantizable(Affected), force=True)
    init_default_scope('mmpretrain')
    net = MODELS.build(
        dict(
            type='mmmpq.QuantModel',
            base_type='ImageClassifier',
            quant=dict(candidates=CANDIDATES, ends='fixed'),
            backbone=dict(
                type='ResNet',
                depth=18,
                base_channels=4,
                stem_channels=4,
                num_stages=2,
                strides=(1, 2),
                dilations=(1, 1),
                out_indices=(1,),
                conv_cfg=dict(type='Affected'),
            ),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=8),
        )
    )
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad(), calibrating(net):
        net(x)
    assert len(SearchSpace(net).groups) == 4
    apply_policy(net, Policy({n: Precision(8, 8) for n in quantized_layers(net)}))
    assert isinstance(net.backbone.layer1[0].conv1, Affected)
    with torch.no_grad():
        wanted = net.eval()(x, mode='tensor')
    export_onnx(net, tmp_path / 'net.onnx', (3, 16, 16))
    session = onnxruntime.InferenceSession(tmp_path / 'net.onnx')
    (found,) = session.run(None, {'images': x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=0.02, atol=0.02)


def test_init_cfg_of_the_parent_reaches_the_layers():
    net, _ = searched()
    cfg = dict(type='Constant', layer='Strict', val=0.25, bias=0.5)
    initialize(net, cfg)
    assert (net.body.weight == 0.25).all() and (net.stem.weight != 0.25).any()


def test_classes_that_are_not_registered_stay_float():
    assert float_twin(Strict(1, 1, 3)) is None
    assert [t.__name__ for t in float_twin(Scaled(1, 1, 3))] == [
        'MixedScaled',
        'QuantScaled',
    ]
    with pytest.raises(
        ValueError, match=r'found ConvTranspose2d; accepted are subclasses'
    ):
        quantizable(nn.ConvTranspose2d)


# --- classes of the toolboxes ---------------------------------------------------------


class Cropped(nn.Conv2d):
    """Pads, and is no class that anybody registered."""

    def forward(self, x):
        return self._conv_forward(
            F.pad(x, (1, 1, 1, 1), 'reflect'), self.weight, self.bias
        )


class Gated(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight.tanh(), self.bias)


class Halved(nn.Conv2d):
    def forward(self, x):
        return 0.5 * self._conv_forward(x, self.weight, self.bias)


class Masked(nn.Conv2d):
    def forward(self, x, mask=None):
        return super().forward(x)


@pytest.mark.parametrize('kind', [Conv2dAdaptivePadding, Cropped])
def test_what_pads_and_convolves_is_quantized(kind):
    layer = kind(3, 4, 3, stride=2)
    assert all(twin.affine for twin in float_twin(layer))
    model = quantize(nn.Sequential(copy.deepcopy(layer)), policy='W32A32')
    x = torch.randn(2, 3, 9, 8)
    assert torch.equal(model(x), layer(x))


@pytest.mark.parametrize('kind', [Halved, Gated, Masked])
def test_what_computes_more_stays_float(kind):
    assert float_twin(kind(3, 4, 3)) is None


@pytest.mark.parametrize('kind', [ConvWS2d, ConvAWS2d])
@pytest.mark.parametrize('bits', [4, 32])
def test_standardised_weights_are_quantized(kind, bits):
    """conv(x, Q(Ŵ)), in training, as integers and in a packed file."""
    torch.manual_seed(0)
    layer = kind(3, 4, 3)
    if kind is ConvAWS2d:
        layer.weight_gamma.uniform_(0.5, 2)
        layer.weight_beta.normal_()
    net = nn.Sequential(nn.Conv2d(3, 3, 1), copy.deepcopy(layer), nn.Conv2d(4, 2, 1))
    model = quantize(net, policy=f'W{bits}A32')
    x = torch.randn(2, 3, 6, 6)
    # what the float layer convolves with: its output for a 1 at each place
    eye = torch.eye(27).reshape(27, 3, 3, 3)
    standardised = (layer(eye) - layer.bias[:, None, None]).squeeze().T
    standardised = standardised.reshape(4, 3, 3, 3)
    quantized = model[1].w_quantizer(standardised, bits)
    wanted = F.conv2d(x, quantized, layer.bias)
    torch.testing.assert_close(model[1](x), wanted)
    model[1](x).sum().backward()
    assert model[1].weight.grad.abs().sum() > 0
    model.eval()
    if bits == 4:
        q, scale, _ = weight_integers(model[1])
        torch.testing.assert_close(q * scale, quantized)
        other = quantize(copy.deepcopy(nn.Sequential(layer)), policy='W4A32')
        stored = StoredQuantizer((4,))
        stored.set_grid(scale, None, weight_levels(model[1]))
        other[0].store(stored)
        other[0].weight.data = q * scale
        assert torch.equal(other[0](x), model[1](x))
