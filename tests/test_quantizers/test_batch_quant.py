"""BatchQuant against its published formulas, value by value."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mmmpq.layers import MixedConv2d, MixedLinear
from mmmpq.policy import Precision
from mmmpq.quantizers import BatchQuantizer

BITS = (1, 2, 3, 4, 8)
CFG = dict(type='BatchQuantizer')


def quantizer(bits=BITS, gain=0.0, shift=0.0):
    made = BatchQuantizer(bits, 'activation')
    with torch.no_grad():
        made.gain.copy_(torch.as_tensor(gain).expand(len(bits)))
        made.shift.copy_(torch.as_tensor(shift).expand(len(bits)))
    return made


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


def published(x, bits, s, o, low=None, high=None):
    """The formulas as they stand, of x (N, C, H, W), by autograd."""
    n, c, h, w = x.shape
    rows = x.detach().permute(1, 0, 2, 3).reshape(c, n * h * w)
    low = rows.min(1).values.mean() if low is None else low
    high = rows.max(1).values.mean() if high is None else high
    low, high = min(torch.tensor(0.0), low), max(torch.tensor(0.0), high)
    qmin, qmax = 0, 2**bits - 1
    delta, zero = torch.tensor(1.0), torch.tensor(0.0)
    if low != high:
        delta = max((high - low) / (qmax - qmin), torch.tensor(1e-8))
        zero = (qmin - torch.round(low / delta)).clamp(qmin, qmax)
    gamma = torch.log2(1 + 2**s)
    q = Round.apply((x * gamma / delta + zero + o).clamp(qmin, qmax))
    return (q - zero - o) * delta / gamma


@pytest.mark.parametrize('offset', [-5.0, -1.0, 0.0, 1.0, 5.0])
@pytest.mark.parametrize('bits', BITS)
@pytest.mark.parametrize('gain, shift', [(0.0, 0.0), (0.4, -0.3), (-0.7, 1.2)])
def test_values_and_gradients_are_the_published_ones(bits, offset, gain, shift):
    made = quantizer(gain=gain, shift=shift)
    x = torch.randn(3, 5, 4, 6) * 2 + offset
    weights = torch.randn_like(x)
    s, o = torch.tensor(gain).requires_grad_(), torch.tensor(shift).requires_grad_()
    x, same = x.requires_grad_(), x.detach().clone().requires_grad_()
    out, expected = made(x, bits), published(same, bits, s, o)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, same.grad)
    j = BITS.index(bits)
    torch.testing.assert_close(made.gain.grad[j], s.grad, atol=2e-3, rtol=1e-4)
    torch.testing.assert_close(made.shift.grad[j], o.grad, atol=2e-3, rtol=1e-4)
    others = [i for i in range(len(BITS)) if i != j]
    for param in (made.gain, made.shift):  # not None, which would stop DDP
        assert not param.grad[others].any()


def test_an_example_by_hand():
    # channel 0 spans -1 to 3, channel 1 spans -3 to 6: x_min = -2, x_max = 4.5
    x = torch.tensor([[[[-1.0, 3.0]], [[-3.0, 6.0]]]])
    # 2 bits: step 6.5 / 3, z = round(2 / 2.1667) = 1
    step = 6.5 / 3
    out = quantizer()(x, 2)
    expected = torch.tensor([[[[0.0, step]], [[-step, 2 * step]]]])
    torch.testing.assert_close(out, expected)
    # s = log2(3) makes γ = 2: half the step
    out = quantizer(gain=torch.log2(torch.tensor(3.0)))(x, 2)
    expected = torch.tensor([[[[-step / 2, step]], [[-step / 2, step]]]])
    torch.testing.assert_close(out, expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.floats(-4, 4), st.integers(0, 1000))
def test_levels_are_even_with_zero_among_them(bits, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 3, generator=generator) + offset
    low, high = x.amin(0).mean().clamp_max(0), x.amax(0).mean().clamp_min(0)
    step = (high - low) / (2**bits - 1)
    zero = torch.round(-low / step)
    out = quantizer((bits,))(x, bits) / step
    torch.testing.assert_close(out, out.round(), atol=1e-3, rtol=0)
    inside = (x >= -zero * step) & (x <= (2**bits - 1 - zero) * step)
    assert ((out - x / step).abs()[inside] < 0.501).all()
    assert out.min() > -zero - 0.001 and out.max() < 2**bits - 0.999 - zero


@pytest.mark.parametrize(
    'shape', [(6, 4), (2, 7, 4), (2, 5, 3, 4)], ids=['N C', 'N L C', 'N H W C']
)
def test_channels_of_a_linear_layer_come_last(shape):
    layer = MixedLinear(4, 2, candidates=['W4A4'], a_quantizer=CFG)
    x = torch.randn(shape) * torch.tensor([1.0, 5.0, 0.1, 20.0])
    rows = x.reshape(-1, 4)
    step = (rows.amax(0).mean() - rows.amin(0).mean()) / 15
    found = layer.a_quantizer.scales(x, (4,))
    torch.testing.assert_close(found, step[None].detach())


def test_channels_of_a_convolution_come_second():
    layer = MixedConv2d(4, 2, 1, candidates=['W4A4'], a_quantizer=CFG)
    x = torch.randn(2, 4, 5, 3).to(memory_format=torch.channels_last)
    rows = x.transpose(0, 1).reshape(4, -1)
    step = (rows.amax(1).mean() - rows.amin(1).mean()) / 15
    found = layer.a_quantizer.scales(x, (4,))
    torch.testing.assert_close(found, step[None].detach())


def test_inputs_that_span_nothing():
    made = quantizer()
    assert not made(torch.zeros(2, 3, 4, 4), 2).any()
    assert made(torch.zeros(0, 3, 4, 4), 2).shape == (0, 3, 4, 4)
    empty = made(torch.zeros(0, 3, 4, 4, requires_grad=True), 2)
    empty.sum().backward()
    assert made.gain.grad is not None  # DDP waits for it
    same = torch.full((2, 3), 1e-12)
    assert torch.isfinite(made(same, 4)).all()


def test_half_precision_keeps_its_dtype():
    made, x = quantizer(), torch.randn(2, 3, 8, 8).bfloat16()
    out = made(x, 4)
    assert out.dtype == torch.bfloat16
    expected = quantizer()(x.float(), 4)
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-2)


def test_float_is_the_identity():
    made, x = quantizer((2, 32)), torch.randn(2, 3)
    assert made(x, 32) is x


def test_evaluation_needs_statistics_and_keeps_to_them():
    made, x = quantizer((2,), shift=0.3), torch.randn(2, 3, 4, 4)
    made.eval()
    with pytest.raises(ValueError, match='calibrate_subnet'):
        made(x, 2)
    made.set_statistics(torch.tensor([-1.5, 3.0]))
    low, high = torch.tensor(-1.5), torch.tensor(3.0)
    expected = published(x, 2, torch.tensor(0.0), torch.tensor(0.3), low, high)
    torch.testing.assert_close(made(x, 2), expected)
    torch.testing.assert_close(made(x * 9, 2)[x > 1], made(x * 8, 2)[x > 1])
    state = made.state_dict()
    other = quantizer((2,)).eval()
    other.load_state_dict(state)
    assert torch.equal(other(x, 2), made(x, 2))
    made.train()(x, 2)  # the weights are about to change
    with pytest.raises(ValueError, match='no statistics'):
        made.eval()(x, 2)


def test_selecting_a_width_keeps_what_it_has_learned():
    made = quantizer(gain=torch.arange(5) / 10, shift=torch.arange(5) / 7)
    made.set_statistics(torch.tensor([-1.0, 2.0]))
    x = torch.randn(4, 3)
    expected = made.eval()(x, 3)
    one = copy.deepcopy(made)
    one.select(3)
    assert one.gain.shape == (1,) and one.bits == (3,)
    assert torch.equal(one(x, 3), expected)


def test_a_mixture_sums_its_widths():
    made, x = quantizer((2, 4, 32)), torch.randn(3, 4, 5, 5)
    probs = torch.tensor([0.2, 0.3, 0.5])
    expected = 0.2 * made(x, 2) + 0.3 * made(x, 4) + 0.5 * x
    torch.testing.assert_close(made.mix(x, (2, 4, 32), probs), expected)


def test_weights_are_refused():
    with pytest.raises(ValueError, match='LSQQuantizer'):
        BatchQuantizer((2,), 'weight')


def test_a_fixed_layer_computes_as_the_path_it_was():
    layer = MixedConv2d(
        *(3, 4, 3),
        candidates=['W2A2', 'W4A3'],
        mixing='sampled',
        relaxation=dict(type='UniformSampling'),
        w_quantizer=dict(type='LSQQuantizer'),
        a_quantizer=CFG,
    )
    assert isinstance(layer, nn.Conv2d)
    x = torch.randn(2, 3, 8, 8)
    layer.relaxation.choice = 1
    layer.a_quantizer.set_statistics(torch.tensor([-2.0, 2.5]))
    expected = layer.eval()(x)
    layer.fix(Precision(4, 3))
    assert torch.equal(layer(x), expected)
    assert float(layer.state_dict()['a_quantizer.extremes'][1]) == 2.5


@pytest.mark.parametrize(
    ('stored', 'own', 'kept'),
    [
        ((4,), (4,), True),
        ((4,), (2,), False),
        ((2, 4), (2,), False),
        ((4,), (2, 4), False),
        ((2, 4), (2, 4), False),
    ],
)
def test_statistics_are_loaded_by_the_same_fixed_net_alone(stored, own, kept):
    source, target = quantizer(stored, gain=0.5), quantizer(own)
    for each in (source, target):
        each.set_statistics(torch.tensor([0.0, 1.0]))
    assert source.calibrated
    target.load_state_dict(source.state_dict(), strict=False)
    assert target.calibrated == kept
