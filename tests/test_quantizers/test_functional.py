"""The fused fake quantizers against plain autograd."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmmpq.quantizers import fake_quantize, mix_fake_quantize
from mmmpq.quantizers.functional import uniform_levels


class Round(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


def reference(x, scale, probs, levels, scale_grad=None):
    """Σ_j p_j round(clip(x / s_j)) s_j, differentiated by autograd."""
    total = 0
    for j, level in enumerate(levels):
        factor = 1.0 if scale_grad is None else scale_grad[j]
        s = scale[j] * factor + (scale[j] * (1 - factor)).detach()
        q = x if level is None else Round.apply((x / s).clamp(*level)) * s
        total = total + (q if probs is None else probs[j] * q)
    return total


SIGNED = [uniform_levels(b, True) for b in (2, 3, 4, 8)]
UNSIGNED = [uniform_levels(b, False) for b in (2, 3, 4, 8)]
WITH_FLOAT = [(-1, 1), None, (-7, 7)]
LSQ = [(-2, 1), (-8, 7), (-8, 7)]


@pytest.mark.parametrize('levels', [SIGNED, UNSIGNED, WITH_FLOAT, LSQ, [None]])
@pytest.mark.parametrize('channels', [1, 5])
@pytest.mark.parametrize('layout', ['plain', 'channels_last', 'sliced', 'expanded'])
def test_values_and_gradients_are_autograds(levels, channels, layout):
    m = len(levels)
    x = torch.randn(5, 4, 6, 6, dtype=torch.float64)
    if layout == 'channels_last':
        x = x.to(memory_format=torch.channels_last)
    if layout == 'sliced':
        x = torch.randn(5, 8, 6, 12, dtype=torch.float64)[:, ::2, :, 3:9]
    if layout == 'expanded':
        x = x[:, :1].expand(5, 4, 6, 6)
    shape = (m,) if channels == 1 else (m, channels, 1, 1, 1)
    scale = torch.rand(shape, dtype=torch.float64) * 0.4 + 0.05
    probs = torch.softmax(torch.randn(m, dtype=torch.float64), 0)
    factors = [0.5 + j for j in range(m)]
    grad = torch.randn(5, 4, 6, 6, dtype=torch.float64)
    found, wanted = [], []
    for function, into in (mix_fake_quantize, found), (reference, wanted):
        leaves = [t.detach().requires_grad_() for t in (x, scale, probs)]
        out = function(*leaves, levels, factors)
        grads = torch.autograd.grad(out, leaves, grad, allow_unused=True)
        into += [
            out,
            *(
                torch.zeros_like(t) if g is None else g
                for g, t in zip(grads, leaves, strict=True)
            ),
        ]
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('levels', [(-7, 7), (0, 15), (-8, 7)])
def test_one_width_is_autograds(levels):
    x = torch.randn(3, 50, dtype=torch.float64)
    grad = torch.randn_like(x)
    results = []
    for function in (
        lambda x, s: fake_quantize(x, s, levels, 0.3),
        lambda x, s: reference(x, s[None], None, [levels], [0.3]),
    ):
        leaves = x.clone().requires_grad_(), torch.tensor(0.11).double()
        leaves[1].requires_grad_()
        out = function(*leaves)
        results.append((out, *torch.autograd.grad(out, leaves, grad)))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def test_larger_than_one_block():
    x = torch.randn(10 * 2048 + 17, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.5, 0.1], dtype=torch.float64, requires_grad=True)
    probs = torch.tensor([0.25, 0.75], dtype=torch.float64, requires_grad=True)
    levels = [(-1, 1), (-7, 7)]
    out = mix_fake_quantize(x, scale, probs, levels, [1.0, 1.0])
    torch.testing.assert_close(out, reference(x, scale, probs, levels))
    grads = torch.autograd.grad(out.square().mean(), (x, scale, probs))
    out = reference(x, scale, probs, levels)
    wanted = torch.autograd.grad(out.square().mean(), (x, scale, probs))
    torch.testing.assert_close(grads, wanted)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('channels', [1, 8])
def test_half_precision_works_in_float32(dtype, channels):
    x = torch.randn(8, 40).to(dtype).requires_grad_()
    shape = (2,) if channels == 1 else (2, channels, 1)
    scale = (torch.rand(shape) + 0.1).requires_grad_()
    probs = torch.tensor([0.3, 0.7], requires_grad=True)
    levels = [(-3, 3), (-127, 127)]
    out = mix_fake_quantize(x, scale, probs, levels, [1.0, 1.0])
    grads = torch.autograd.grad(out, (x, scale, probs), torch.ones_like(out))
    assert out.dtype == grads[0].dtype == dtype
    assert grads[1].dtype == grads[2].dtype == torch.float32
    wide = x.detach().float().requires_grad_()
    wanted = reference(wide, scale, probs, levels)
    torch.testing.assert_close(out, wanted.to(dtype))
    wanted = torch.autograd.grad(wanted.sum(), (wide, scale, probs))
    torch.testing.assert_close(grads[0], wanted[0].to(dtype))
    torch.testing.assert_close(grads[1:], wanted[1:], rtol=1e-4, atol=1e-3)


def test_empty_tensor():
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    scale = torch.ones(2, requires_grad=True)
    probs = torch.tensor([0.5, 0.5], requires_grad=True)
    out = mix_fake_quantize(x, scale, probs, [(-1, 1), None], [1.0, 1.0])
    assert out.shape == x.shape
    grads = torch.autograd.grad(out.sum(), (x, scale, probs))
    assert [g.shape for g in grads] == [x.shape, scale.shape, probs.shape]
    assert not grads[1].any()
    assert not grads[2].any()


def test_memory_format_is_kept():
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    out = fake_quantize(x, torch.tensor(0.1), (-7, 7))
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('signed', [True, False])
def test_every_level_is_reached_exactly(bits, signed):
    low, high = uniform_levels(bits, signed)
    assert high - low + 1 == 2**bits - signed
    step = 0.0625
    x = torch.linspace(low - 2, high + 2, 40001) * step
    out = fake_quantize(x, torch.tensor(step), (low, high))
    assert torch.equal(out.unique(), torch.arange(low, high + 1) * step)


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    signed=st.booleans(),
    scale=st.floats(1e-3, 1e2),
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20),
)
def test_idempotent_monotone_and_near(bits, signed, scale, values):
    x = torch.tensor(values).sort().values
    s = torch.tensor(scale)
    low, high = uniform_levels(bits, signed)
    once = fake_quantize(x, s, (low, high))
    torch.testing.assert_close(fake_quantize(once, s, (low, high)), once)
    assert (once.diff() >= 0).all()
    clipped = x.clamp(low * s, high * s)
    assert ((once - clipped).abs() <= s * 0.5001 + 1e-6 * clipped.abs()).all()


def test_float_is_the_identity():
    x = torch.randn(4)
    assert uniform_levels(32, True) is None
    assert fake_quantize(x, torch.ones(()), None) is x


@pytest.mark.parametrize('channels', [1, 8])
def test_autocast_changes_nothing_in_float32(channels):
    x = torch.randn(8, 40, requires_grad=True)
    shape = (2,) if channels == 1 else (2, channels, 1)
    scale = (torch.rand(shape) + 0.1).requires_grad_()
    probs = torch.tensor([0.3, 0.7], requires_grad=True)
    results = []
    for enabled in False, True:
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=enabled):
            out = mix_fake_quantize(x, scale, probs, [(-3, 3), (-127, 127)], [1.0, 1.0])
            grads = torch.autograd.grad(out.sum(), (x, scale, probs))
        results.append((out, *grads))
    assert results[1][0].dtype == torch.float32
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize('channels', [1, 3])
def test_ranges_are_steps_with_autograd_in_front(channels):
    """max(|r|, 1e-8) / n within the operation, against torch's own operations."""
    x = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    ranges = torch.randn(2, channels, dtype=torch.float64, requires_grad=True)
    probs = torch.tensor([0.3, 0.7], dtype=torch.float64)
    levels, divisors = [(-3, 3), (-7, 7)], (3.0, 7.0)
    steps = ranges.abs().clamp_min(1e-8) / torch.tensor([[3.0], [7.0]])
    steps = steps[:, 0] if channels == 1 else steps[..., None, None]
    wanted = mix_fake_quantize(x, steps, probs, levels, [0.5, 2.0])
    found = mix_fake_quantize(x, ranges, probs, levels, [0.5, 2.0], divisors=divisors)
    torch.testing.assert_close(found, wanted)
    grad = torch.randn(x.shape, dtype=torch.float64)
    for one, two in zip(
        torch.autograd.grad(found, (x, ranges), grad),
        torch.autograd.grad(wanted, (x, ranges), grad),
        strict=True,
    ):
        torch.testing.assert_close(one, two)
