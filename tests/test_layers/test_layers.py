"""Quantized layers against sums written out by hand."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule, build_conv_layer
from mmengine.model import initialize
from mmengine.registry import MODELS
from torch import nn
from torch.nn import functional as F

from mmmpq.layers import (
    MixedConv2d,
    MixedLinear,
    Mode,
    QuantConv2d,
    QuantLinear,
    base,
    calibrating,
    float_mode,
    quantized_layers,
)
from mmmpq.layers.shares import Shares
from mmmpq.policy import Precision

NEIGHBOURS = [(2, 2), (2, 3), (3, 2), (3, 3), (4, 4), (8, 4), (32, 8), (32, 32)]
SHAPES = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, padding=1, bias=False),
    dict(kernel_size=3, groups=2),
    dict(kernel_size=3, groups=4, stride=2),
    dict(kernel_size=3, dilation=2),
    dict(kernel_size=1),
    dict(kernel_size=3, padding='same', padding_mode='reflect'),
]


def mixed_conv(shape=SHAPES[0], candidates=NEIGHBOURS, **kwargs):
    layer = MixedConv2d(4, 8, **shape, candidates=candidates, **kwargs)
    with torch.no_grad():
        layer.relaxation.logits.normal_()
    return layer


def image(*size):
    return torch.randn(*(size or (2, 4, 9, 9)))


def terms(layer, x):
    """conv(Q_a(x), Q_w(W)) of every candidate."""
    return [
        layer._conv_forward(
            layer.a_quantizer(x, a), layer.w_quantizer(layer.weight, w), layer.bias
        )
        for w, a in layer.candidates
    ]


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('per_channel', [False, True])
def test_outputs_are_the_sum_over_all_candidates(shape, per_channel):
    quantizer = dict(type='LinearQuantizer', per_channel=per_channel)
    layer = mixed_conv(shape, mixing='outputs', w_quantizer=quantizer)
    x = image()
    out = layer(x)
    p = layer.relaxation.probs()
    wanted = sum(p[j] * term for j, term in enumerate(terms(layer, x)))
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)

    # and so are the gradients
    leaves = [layer.relaxation.logits.requires_grad_(), layer.weight]
    grad = torch.randn_like(out)
    found = torch.autograd.grad(layer(x), leaves, grad)
    p = layer.relaxation.probs()
    wanted = sum(p[j] * term for j, term in enumerate(terms(layer, x)))
    wanted = torch.autograd.grad(wanted, leaves, grad)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('shape', SHAPES)
def test_composite_is_one_conv_of_two_sums(shape):
    layer = mixed_conv(shape, mixing='composite')
    x = image()
    out = layer(x)
    p = layer.relaxation.probs()
    weight = sum(
        p[j] * layer.w_quantizer(layer.weight, c.w_bits)
        for j, c in enumerate(layer.candidates)
    )
    inputs = sum(
        p[j] * layer.a_quantizer(x, c.a_bits) for j, c in enumerate(layer.candidates)
    )
    wanted = layer._conv_forward(inputs, weight, layer.bias)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('mixing', ['composite', 'outputs', 'sampled'])
def test_linear(mixing):
    layer = MixedLinear(6, 5, candidates=[(2, 2), (4, 8)], mixing=mixing)
    with torch.no_grad():
        layer.relaxation.logits.copy_(torch.tensor([0.0, 1.0]))
    x = torch.randn(3, 7, 6)
    layer.relaxation.choice = 1
    out = layer(x)
    p = layer.relaxation.probs()
    w = [layer.w_quantizer(layer.weight, b) for b in (2, 4)]
    a = [layer.a_quantizer(x, b) for b in (2, 8)]
    if mixing == 'sampled':
        wanted = F.linear(a[1], w[1], layer.bias)
    elif mixing == 'outputs':
        wanted = sum(p[j] * F.linear(a[j], w[j], layer.bias) for j in range(2))
    else:
        mean = p[0] * w[0] + p[1] * w[1]
        wanted = F.linear(p[0] * a[0] + p[1] * a[1], mean, layer.bias)
    torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize('mixing', ['composite', 'outputs', 'sampled'])
@pytest.mark.parametrize('shape', SHAPES)
def test_fixed_layer_is_the_one_hot_mixture(shape, mixing):
    layer = mixed_conv(shape, mixing=mixing)
    x = image()
    layer(x)  # calibrates
    for j, candidate in enumerate(layer.candidates):
        with torch.no_grad():
            layer.relaxation.logits.fill_(-1e4)
            layer.relaxation.logits[j] = 0
        layer.relaxation.choice = j
        fixed = copy.deepcopy(layer)
        fixed.fix(candidate)
        assert type(fixed) is QuantConv2d
        assert fixed.precision == candidate
        torch.testing.assert_close(layer(x), fixed(x), rtol=1e-5, atol=1e-5)
        again = QuantConv2d(
            4, 8, **shape, w_bits=candidate.w_bits, a_bits=candidate.a_bits
        )
        again.load_state_dict(fixed.state_dict())
        assert torch.equal(again(x), fixed(x))


def test_fixing_at_no_candidate():
    with pytest.raises(ValueError, match=r'found W7A7.*W2A2, W4A4'):
        mixed_conv(candidates=[(2, 2), (4, 4)]).fix((7, 7))


@pytest.mark.parametrize('mixing', ['composite', 'outputs'])
def test_one_candidate_is_the_fixed_layer(mixing):
    layer = mixed_conv(candidates=[(3, 4)], mixing=mixing)
    x = image()
    out = layer(x)
    layer.fix(Precision(3, 4))
    assert torch.equal(layer(x), out)


@pytest.mark.parametrize('mixing', ['composite', 'outputs', 'sampled'])
def test_float_candidates_change_nothing(mixing):
    layer = mixed_conv(candidates=[(32, 32)], mixing=mixing)
    layer.relaxation.choice = 0
    x = image()
    assert torch.equal(layer(x), layer._conv_forward(x, layer.weight, layer.bias))


@pytest.mark.parametrize('mixing', ['composite', 'outputs'])
@pytest.mark.parametrize('bits', [2, 4])
def test_candidates_of_weights_alone_are_one_conv_of_the_float_input(mixing, bits):
    layer = mixed_conv(candidates=[(bits, 32), (8, 32), (32, 32)], mixing=mixing)
    x = image().requires_grad_()
    leaves = [x, layer.weight, layer.relaxation.logits.requires_grad_()]
    out = layer(x)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, grad)
    p = torch.softmax(layer.relaxation.logits, 0)
    quantized = [layer.w_quantizer(layer.weight, b) for b in (bits, 8)]
    weight = p[0] * quantized[0] + p[1] * quantized[1] + p[2] * layer.weight
    wanted = F.conv2d(x, weight, layer.bias, padding=1)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-5)
    wanted = torch.autograd.grad(wanted, leaves, grad)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not layer.a_quantizer.range.requires_grad  # DDP would wait for it


def test_sampled_gradient_passes_straight_through():
    layer = mixed_conv(candidates=[(2, 2), (4, 4), (8, 8)], mixing='sampled')
    x = image()
    layer.relaxation.choice = 2
    with torch.no_grad():
        wanted = layer(x)
    logits = layer.relaxation.logits.requires_grad_()
    out = layer(x)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(out)
    (found,) = torch.autograd.grad(out, logits, grad)
    # the same, with the one-hot as a free variable of the composite
    hot = torch.tensor([0.0, 0.0, 1.0], requires_grad=True)
    (at_hot,) = torch.autograd.grad(
        layer.mixer.output(layer, x, Shares(layer.relaxation, hot)), hot, grad
    )
    p = torch.softmax(logits.detach(), 0)
    torch.testing.assert_close(
        found, p * (at_hot - (p * at_hot).sum()), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize('mixing', ['composite', 'outputs'])
def test_factorised_equals_joint_where_p_is_an_outer_product(mixing):
    grid = [(w, a) for w in (2, 4, 8) for a in (3, 4)]
    joint = mixed_conv(candidates=grid, mixing=mixing)
    factorised = mixed_conv(
        candidates=grid, mixing=mixing, relaxation=dict(type='Softmax', factorised=True)
    )
    assert factorised.relaxation.logits.shape == (5,)
    factorised.load_state_dict(
        {k: v for k, v in joint.state_dict().items() if 'logits' not in k}, strict=False
    )
    w, a = factorised.relaxation.logits.split([3, 2])
    with torch.no_grad():
        joint.relaxation.logits.copy_((w[:, None] + a).flatten())
    x = image()
    torch.testing.assert_close(
        joint.relaxation.probs(), factorised.relaxation.probs(), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(joint(x), factorised(x), rtol=1e-4, atol=1e-5)


def test_weights_train_and_logits_wait():
    layer = mixed_conv()
    assert not layer.relaxation.logits.requires_grad
    layer(image()).sum().backward()
    assert layer.weight.grad.abs().sum() > 0
    assert layer.w_quantizer.range.grad is not None
    assert layer.relaxation.logits.grad is None


@pytest.mark.parametrize('mixing', ['composite', 'outputs', 'sampled'])
def test_empty_batch(mixing):
    layer = mixed_conv(mixing=mixing)
    layer.relaxation.choice = 0
    out = layer(image(0, 4, 9, 9))
    assert out.shape == (0, 8, 9, 9)
    out.sum().backward()
    assert not layer.a_quantizer.calibrated
    assert layer(image()).isfinite().all()


def test_bf16_autocast():
    layer = mixed_conv()
    x = image()
    wanted = layer(x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), wanted, rtol=0.05, atol=0.1)


def test_float_layer_turned_in_place():
    conv = nn.Conv2d(4, 8, 3)
    weight, keys = conv.weight, list(conv.state_dict())
    calls = []
    conv.register_forward_hook(lambda *_: calls.append(1))
    model = nn.Sequential(conv, nn.ReLU())
    layer = QuantConv2d.from_float(conv, w_bits=4, a_bits=8)
    assert layer is model[0] is conv
    assert layer.weight is weight
    assert list(conv.state_dict())[: len(keys)] == keys
    model(image())
    assert calls == [1]


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: mixed_conv(mixing='sum'), "mixing: found 'sum'.*composite"),
        (lambda: mixed_conv(candidates=[]), 'empty'),
        (lambda: mixed_conv(candidates=[(0, 0), (4, 4)]), r'\(0, 0\) for a layer'),
        (lambda: QuantConv2d(1, 1, 1, w_bits=0, a_bits=0), r'\(0, 0\) for a layer'),
        (lambda: mixed_conv(candidates=[(1, 4)]), 'at least 2 bits; found 1'),
        (lambda: QuantConv2d(1, 1, 1, w_bits=9, a_bits=4), 'found 9 bits'),
        (
            lambda: mixed_conv(quantizer=dict(type='LinearQuantiser')),
            "quantizer.type: found 'LinearQuantiser'; near names: LinearQuantizer",
        ),
        (lambda: mixed_conv(relaxation=dict(type='Gumbel')), 'near names: GumbelSoft'),
        (lambda: mixed_conv(quantizer=dict(range='learned')), 'the key type'),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- models of several layers ---------------------------------------------------------


def chain():
    return nn.Sequential(
        QuantConv2d(3, 4, 3, w_bits=4, a_bits=4),
        nn.ReLU(),
        MixedConv2d(4, 4, 3, candidates=[(2, 2), (8, 8)]),
        nn.Flatten(),
        QuantLinear(4 * 16, 5, w_bits=8, a_bits=8),
    )


def test_float_mode():
    net = chain()
    x = torch.randn(2, 3, 8, 8)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    plain.load_state_dict(
        {k: v for k, v in net.state_dict().items() if k.count('.') < 2}
    )
    with float_mode(net):
        assert torch.equal(net(x), plain(x))
    assert not torch.equal(net(x), plain(x))


def test_calibration_sees_signs_ranges_and_unreached_layers(monkeypatch):
    said = []
    monkeypatch.setattr(base, 'print_log', lambda text, **_: said.append(text))
    net = chain()
    net.add_module('unused', QuantLinear(2, 2, w_bits=4, a_bits=4))
    net.forward = lambda x: nn.Sequential(*list(net)[:5])(x)
    x = torch.randn(8, 3, 8, 8)
    with calibrating(net):
        net(x)
    layers = quantized_layers(net)
    assert list(layers) == ['0', '2', '4', 'unused']
    signs = [int(layer.a_quantizer.signed) for layer in layers.values()]
    assert signs == [1, 0, 1, -1]
    assert all(layer.w_quantizer.calibrated for layer in layers.values())
    wide = layers['4'].a_quantizer.range.item()
    with float_mode(net):
        values = net[3](net[2](net[1](net[0](x))))
    assert 0.5 * values.abs().max() < wide <= values.abs().max()
    assert len(said) == 1
    assert said[0].endswith('other than zero: unused')
    assert net(x).isfinite().all()


def test_calibration_names_layers_that_saw_only_zeros(monkeypatch):
    said = []
    monkeypatch.setattr(base, 'print_log', lambda text, **_: said.append(text))
    net, x = chain(), torch.randn(8, 3, 8, 8)
    nn.init.zeros_(net[2].weight)
    nn.init.zeros_(net[2].bias)
    with calibrating(net):
        net(x)
    assert len(said) == 1 and said[0].endswith('other than zero: 4')
    assert net(x).isfinite().all()
    nn.init.ones_(net[2].weight)
    net(x)  # now there is something to see
    assert net[4].a_quantizer.calibrated


def test_calibration_that_fails_leaves_the_layers_quantized():
    net = chain()
    with pytest.raises(RuntimeError), calibrating(net):
        net(torch.randn(2, 7, 8, 8))
    assert all(layer.mode is Mode.QUANTIZED for layer in quantized_layers(net).values())


# --- through the toolboxes' own ways --------------------------------------------------


@pytest.mark.parametrize('kind', ['Quant', 'Mixed'])
def test_conv_cfg_of_mmcv(kind):
    bits = dict(w_bits=4, a_bits=4) if kind == 'Quant' else dict(candidates=['W4A4'])
    cfg = dict(type=f'mmmpq.{kind}Conv2d', **bits)
    conv = build_conv_layer(cfg, 3, 8, 3, padding=1)
    assert type(conv).__name__ == cfg['type'][6:]
    module = ConvModule(
        3, 8, 3, conv_cfg=cfg, norm_cfg=dict(type='BN'), act_cfg=dict(type='ReLU')
    )
    assert module(torch.randn(2, 3, 8, 8)).shape == (2, 8, 6, 6)
    assert set(dict(module.conv.named_parameters())) >= {'weight'}


def test_conv_cfg_of_a_backbone():
    pytest.importorskip('mmpretrain')
    cfg = dict(type='mmmpq.QuantConv2d', w_bits=4, a_bits=4)
    net = MODELS.build(
        dict(
            type='mmpretrain.ResNet',
            depth=18,
            base_channels=8,
            stem_channels=8,
            conv_cfg=cfg,
        )
    )
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 20
    assert all(m.precision == (4, 4) for m in convs)
    (out,) = net(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, 64, 1, 1)
    out.sum().backward()


@pytest.mark.parametrize(
    'layer',
    [
        lambda: QuantConv2d(3, 8, 3, w_bits=4, a_bits=4),
        lambda: MixedConv2d(3, 8, 3, candidates=['W4A4']),
        lambda: QuantLinear(3, 8, w_bits=4, a_bits=4),
        lambda: MixedLinear(3, 8, candidates=['W4A4']),
    ],
)
def test_init_cfg_reaches_the_layer(layer):
    """MMEngine compares names of a class and of its direct bases."""
    layer = layer()
    names = ['Conv2d', 'Linear']
    initialize(layer, dict(type='Constant', val=0.125, bias=0.5, layer=names))
    assert (layer.weight == 0.125).all()
    assert (layer.bias == 0.5).all()
