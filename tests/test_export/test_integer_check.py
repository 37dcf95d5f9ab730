import importlib
import itertools
import json
import math

import pytest
import torch
from torch import nn

from mmmpq.export.integer_check import (
    IntegerLayer,
    LayerCheck,
    accumulator_bits,
    checking,
)
from mmmpq.export.integers import activation_levels, weight_integers
from mmmpq.layers import MixedConv2d, QuantConv2d, QuantLinear

LINEAR = dict(type='LinearQuantizer')
PER_CHANNEL = dict(type='LinearQuantizer', per_channel=True)
GAUSSIAN = dict(type='GaussianQuantizer')
PLUS = dict(type='LSQPlusQuantizer')


def conv(quantizer=LINEAR, x=None, w_bits=3, a_bits=4, **kwargs):
    torch.manual_seed(0)
    layer = QuantConv2d(
        4, 6, 3, w_bits=w_bits, a_bits=a_bits, quantizer=quantizer, **kwargs
    )
    layer.calibrate([x])
    return layer.eval()


def loop(layer, x):
    """The products of every output one by one, as Python integers."""
    q_w, _, z_w = weight_integers(layer)
    scale, z_a, low, high = activation_levels(layer)
    q_a = (x * (1 / torch.tensor(scale)) + z_a).round().clamp(low, high).long()
    z_w = 0 if z_w is None else float(z_w)
    whole = round(z_a)
    (pad, _), (stride, _) = layer.padding, layer.stride
    inside, outside = layer.in_channels // layer.groups, layer.out_channels
    size = (x.shape[-1] + 2 * pad - 3) // stride + 1
    integers = torch.zeros(len(x), outside, size, size, dtype=torch.long)
    exact = torch.zeros(len(x), outside, size, size, dtype=torch.double)
    places = itertools.product(*map(range, integers.shape))
    for n, o, i, j in places:
        first = o // (outside // layer.groups) * inside
        for c, u, v in itertools.product(range(inside), range(3), range(3)):
            y, z = i * stride + u - pad, j * stride + v - pad
            if 0 <= y < x.shape[2] and 0 <= z < x.shape[3]:
                w, a = int(q_w[o, c, u, v]), int(q_a[n, first + c, y, z])
                integers[n, o, i, j] += w * (a - whole)
                exact[n, o, i, j] += (w - z_w) * (a - z_a)
    return integers, exact


@pytest.mark.parametrize('signed', [False, True])
@pytest.mark.parametrize('quantizer', [LINEAR, PER_CHANNEL, GAUSSIAN, PLUS])
@pytest.mark.parametrize('shape', [dict(padding=1), dict(groups=2, stride=2)])
def test_against_a_loop(quantizer, signed, shape):
    x = torch.randn(2, 4, 5, 5)
    x = x if signed else x.relu()
    layer = conv(quantizer, x, **shape)
    integers, exact = loop(layer, x)
    checked = IntegerLayer(layer)
    sums = checked.accumulators(x)
    torch.testing.assert_close(sums[0][0], integers.double(), rtol=0, atol=0)
    _, scale, _ = weight_integers(layer)
    scale = scale.double() * activation_levels(layer)[0]
    scale = scale.reshape(-1, 1, 1) if scale.numel() > 1 else scale
    wanted = exact * scale + layer.bias.double().reshape(-1, 1, 1)
    torch.testing.assert_close(checked.rescale(sums), wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(checked.rescale(sums).float(), layer(x))


def test_inputs_of_16_bits():
    x = torch.randn(2, 4, 5, 5)
    layer = conv(LINEAR, x, w_bits=8, a_bits=16, padding=1)
    integers, _ = loop(layer, x)
    found = IntegerLayer(layer).accumulators(x)[0][0]
    torch.testing.assert_close(found, integers.double(), rtol=0, atol=0)
    assert integers.abs().max() > 2**20  # more than 8 bits' would be


def test_any_zero_point(monkeypatch):
    """An asymmetric grid: its integer part is subtracted, its fraction corrected."""
    x = torch.randn(2, 4, 5, 5)
    layer = conv(x=x.relu(), padding=1)
    zero = torch.tensor([3.3])
    monkeypatch.setattr(layer.a_quantizer, 'offsets', lambda x, bits: zero)
    checked = IntegerLayer(layer)
    sums = checked.accumulators(x)
    assert len(sums) == 2
    assert checked.quantize(x).min() == -3
    torch.testing.assert_close(checked.rescale(sums).float(), layer(x))
    integers, _ = loop(layer, x)
    torch.testing.assert_close(sums[0][0], integers.double())


def test_linear_layers_of_any_shape():
    x = torch.randn(2, 7, 12)
    layer = QuantLinear(12, 5, w_bits=4, a_bits=8, quantizer=PER_CHANNEL)
    layer.calibrate([x])
    model = nn.Sequential(layer).eval()
    with checking(model) as checks:
        model(x)
        model(x[0])
    assert checks['0'].calls == 2
    assert checks['0'].share < 1e-6


def test_accumulators_stay_within_the_bound_and_reach_it():
    x = torch.rand(1, 4, 9, 9)
    layer = conv(PER_CHANNEL, x, padding=1)
    least, most = IntegerLayer(layer).bound()
    q, top = weight_integers(layer)[0].long(), activation_levels(layer)[3]
    assert most == top * int(q.clamp(min=0).sum((1, 2, 3)).max())
    assert least == top * int(q.clamp(max=0).sum((1, 2, 3)).min())
    worst = q.clamp(min=0).sum((1, 2, 3)).argmax()
    x = (q[worst] > 0).float()[None] * 1e3
    assert IntegerLayer(layer).accumulators(x)[0][0].max() == most


@pytest.mark.parametrize(
    'ends, bits',
    [((0, 0), 1), ((-1, 0), 1), ((-128, 127), 8), ((0, 128), 9), ((-129, 0), 9)],
)
def test_bits_of_a_range(ends, bits):
    assert accumulator_bits(*ends) == bits


def test_int32_ends_where_it_ends():
    check = LayerCheck('layer', 8, 8, least=-(2**31), most=2**31 - 1)
    assert (check.bits, check.overflows) == (32, False)
    check.most += 1
    assert (check.bits, check.overflows) == (33, True)


def test_a_layer_that_would_overflow():
    """127 · 255 · 66 312 inputs are the first sum above 2^31 - 1."""
    inputs = 66_312
    layer = QuantLinear(inputs, 1, w_bits=8, a_bits=8, quantizer=LINEAR)
    nn.init.ones_(layer.weight)
    x = torch.ones(1, inputs)
    layer.calibrate([x])
    model = nn.Sequential(layer).eval()
    with checking(model) as checks:
        model(x)
    check = checks['0']
    assert check.most == check.highest == 127 * 255 * inputs
    assert check.overflows
    assert check.share < 1e-5


def test_a_wrong_output_is_seen():
    x = torch.rand(1, 4, 5, 5)
    layer = conv(x=x)
    right = layer._quantized
    layer._quantized = lambda x: right(x) + 0.25
    with checking(nn.Sequential(layer)) as checks:
        layer(x)
    assert checks['0'].deviation == pytest.approx(0.25, abs=1e-5)


def test_an_output_that_is_no_number_is_seen():
    x = torch.rand(1, 4, 5, 5)
    layer = conv(x=x)
    with checking(nn.Sequential(layer)) as checks:
        layer(x * float('nan'))
        layer(x)
    assert math.isnan(checks['0'].share)


def test_float_and_skipped_layers_are_left_out():
    x = torch.rand(1, 4, 5, 5)
    model = nn.Sequential(conv(x=x), conv(x=x, a_bits=32)).eval()
    with checking(model) as checks:
        model[0](x)
    assert list(checks) == ['0']
    assert not model[0]._forward_hooks


def test_models_that_cannot_be_checked():
    mixed = MixedConv2d(3, 4, 3, candidates=[(2, 2), (4, 4)])
    for model, message in (
        (nn.Sequential(nn.Conv2d(3, 4, 3)), 'found a float model'),
        (nn.Sequential(mixed), 'candidates in 1 layers'),
        (
            nn.Sequential(QuantConv2d(3, 4, 3, w_bits=4, a_bits=4)),
            'no quantizer ranges for 1 of 1 layers, such as 0',
        ),
    ):
        with pytest.raises(ValueError, match=message), checking(model):
            pass


@pytest.fixture
def tool():
    return importlib.import_module('mmmpq.cli.verify_integer')


def test_faults_name_the_layer(tool):
    fine = LayerCheck('fine', 8, 8, 1, 1e-6, 1.0)
    wide = LayerCheck('wide', 8, 8, 1, 0.0, 1.0, most=2**31)
    off = LayerCheck('off', 4, 4, 1, 0.1, 1.0)
    lost = LayerCheck('lost', 4, 4, 1, float('nan'), 1.0)
    uncalled = LayerCheck('uncalled', 4, 4)
    assert tool.faults([fine, uncalled], 1e-3) == []
    overflow, deviation = tool.faults([fine, wide, off, lost], 1e-3)
    assert 'can overflow: wide (33 bits' in overflow
    assert deviation == 'deviation above 0.001: off (1.0e-01), lost (nan)'
    assert tool.faults([uncalled], 1e-3) == ['no quantized layer was called']


def test_the_tool_ends_with_status_1(tool, tmp_path, monkeypatch, capsys):
    model = nn.Sequential(conv(x=torch.rand(1, 4, 5, 5)))
    checks = [LayerCheck('0', 3, 4, 1, 0.0, 1.0, most=2**31)]
    monkeypatch.setattr(tool, 'build_runner', lambda cfg: model)
    monkeypatch.setattr(tool, 'unwrapped', lambda runner: runner)
    monkeypatch.setattr(tool, 'check', lambda *args: checks)
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'net.pth'
    config.write_text('model = dict()')
    checkpoint.touch()
    out = tmp_path / 'integers.json'
    argv = ['tool', str(config), str(checkpoint), '--json', str(out)]
    monkeypatch.setattr('sys.argv', argv)
    with pytest.raises(SystemExit) as end:
        tool.main()
    assert end.value.code == 1
    assert '32-bit accumulator can overflow: 0 (33 bits' in capsys.readouterr().err
    (layer,) = json.loads(out.read_text())['layers']
    assert layer['overflows']
    assert layer['bits'] == 33
