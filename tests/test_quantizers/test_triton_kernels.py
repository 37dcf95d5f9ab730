"""The kernels for GPUs against the plain form; in Triton's interpreter without one."""

import pytest
import torch

from mmmpq.quantizers import functional, native
from mmmpq.quantizers.kernels import triton_kernels as kernels

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'

LEVELS = {
    'signed': [(-1, 1), (-7, 7), (-127, 127)],
    'half_even_and_float': [(0, 3), None, (0, 15)],
    'one': [(-8, 7)],
}


def problem(levels, channels, offset, probs, dtype=torch.float32, ranges=False):
    torch.manual_seed(0)
    m = len(levels)
    x = torch.randn(3, 5, 17, 19).to(dtype)
    shape = (m,) if channels == 1 else (m, 3, 1, 1, 1)
    scale = torch.rand(shape) * 0.3 + 0.05
    if ranges:  # one negative, one too small
        scale = torch.randn(m, channels)
        scale[-1, -1] = 1e-9
    tensors = (
        torch.randn(x.shape).to(dtype),
        x,
        scale,
        torch.rand(shape) - 0.5 if offset else None,
        torch.softmax(torch.randn(m), 0) if probs else None,
    )
    return (
        *(None if t is None else t.to(DEVICE) for t in tensors),
        tuple(levels),
        tuple(2.0 + j for j in range(m)) if ranges else None,
        tuple(0.5 + j for j in range(m)),
    )


@pytest.mark.parametrize('levels', LEVELS)
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('gradient', native.GRADIENTS)
@pytest.mark.parametrize('offset', [False, True, 'ranges'])
def test_is_the_plain_form(levels, channels, gradient, offset, monkeypatch):
    probs = len(LEVELS[levels]) > 1
    ranges, offset = offset == 'ranges', offset is True
    args = problem(LEVELS[levels], channels, offset, probs, ranges=ranges)
    monkeypatch.setattr(functional, '_kernels', lambda *_: None)
    wanted = functional._forward(*args[1:7])
    torch.testing.assert_close(kernels.forward(*args[1:7]), wanted)
    wanted = functional._backward(*args, gradient, True)
    found = kernels.backward(*args, gradient, True)
    for one, two in zip(found, wanted, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            tolerance = 1e-5 * max(1.0, float(two.abs().max()))
            torch.testing.assert_close(one, two, rtol=1e-4, atol=tolerance)
    assert kernels.backward(*args, gradient, False)[0] is None


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision(dtype, monkeypatch):
    args = problem(LEVELS['signed'], 1, False, True, dtype)
    monkeypatch.setattr(functional, '_kernels', lambda *_: None)
    found = kernels.forward(*args[1:7])
    assert found.dtype == dtype
    torch.testing.assert_close(found, functional._forward(*args[1:7]))
    found = kernels.backward(*args, 'lsq', True)
    wanted = functional._backward(*args, 'lsq', True)
    assert found[0].dtype == dtype
    torch.testing.assert_close(found[0].float(), wanted[0], rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-3, atol=1e-2)


def test_channels_last_nan_and_empty(monkeypatch):
    monkeypatch.setattr(functional, '_kernels', lambda *_: None)
    _, x, *rest, _ = problem(LEVELS['signed'], 1, False, True)
    x = x.to(memory_format=torch.channels_last)
    out = kernels.forward(x, *rest)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, functional._forward(x, *rest))
    x[0, 0, 0, 0] = float('nan')
    assert kernels.forward(x, *rest).isnan().sum() == 1
    empty = kernels.forward(x[:0], *rest)
    assert empty.shape == x[:0].shape
    grads = kernels.backward(empty, x[:0], *rest, (1.0,) * 3, 'lsq', True)
    assert not grads[1].any()
    assert not grads[3].any()


def test_cpu_tensors_are_left_to_others():
    assert not kernels.takes(torch.randn(4), torch.ones(1))
