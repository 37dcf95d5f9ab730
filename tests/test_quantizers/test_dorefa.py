"""DNAS's quantizers against the published formulas, value by value."""

import pytest
import torch

from mmmpq.quantizers import DoReFaQuantizer, PACTQuantizer


def q(x, k):
    return torch.round((2**k - 1) * x) / (2**k - 1)


@pytest.mark.parametrize('bits', range(1, 9))
def test_dorefa_values(bits):
    w = torch.randn(8, 4, 3, 3) * 2
    tanh = torch.tanh(w)
    wanted = 2 * q(tanh / (2 * tanh.abs().max()) + 0.5, bits) - 1
    out = DoReFaQuantizer([bits], 'weight', channels=8)(w, bits)
    torch.testing.assert_close(out, wanted, rtol=1e-5, atol=1e-6)
    assert len(out.unique()) <= 2**bits
    assert out.abs().max() == 1


def test_dorefa_gradient_is_that_of_the_smooth_part():
    w = torch.randn(40, dtype=torch.float64).float().requires_grad_()
    grad = torch.randn(40)
    out = DoReFaQuantizer([3], 'weight')(w, 3)
    tanh = torch.tanh(w)
    smooth = tanh / tanh.abs().max()
    found = torch.autograd.grad(out, w, grad)
    torch.testing.assert_close(found, torch.autograd.grad(smooth, w, grad))


def test_dorefa_mixes_with_the_float_weight():
    w = torch.randn(30, requires_grad=True)
    quantizer = DoReFaQuantizer([2, 4, 32], 'weight')
    probs = torch.tensor([0.2, 0.3, 0.5], requires_grad=True)
    out = quantizer.mix(w, [2, 4, 32], probs)
    wanted = 0.2 * quantizer(w, 2) + 0.3 * quantizer(w, 4) + 0.5 * w
    torch.testing.assert_close(out, wanted)
    leaves = (w, probs)
    found = torch.autograd.grad(out.square().sum(), leaves)
    parts = [quantizer(w, 2), quantizer(w, 4), w]
    wanted = sum(p * part for p, part in zip(probs, parts, strict=True))
    wanted = torch.autograd.grad(wanted.square().sum(), leaves)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(quantizer(w, 32), w)


def test_dorefa_keeps_the_size_of_weights():
    w = torch.randn(1000) * 0.01
    out = DoReFaQuantizer([8], 'weight', rescale=True)(w, 8)
    torch.testing.assert_close(out.abs().mean(), w.abs().mean(), rtol=0.01, atol=0)


@pytest.mark.parametrize('bits', range(1, 9))
@pytest.mark.parametrize('signed', [False, True])
def test_pact(bits, signed):
    if signed and bits == 1:
        return
    x = torch.randn(2000)
    x = (x if signed else x.relu()).requires_grad_()
    quantizer = PACTQuantizer([bits], 'activation')
    quantizer.calibrate(x)
    a = quantizer.range.data.fill_(1.3).squeeze()
    n = 2 ** (bits - signed) - 1
    out = quantizer(x, bits)
    y = x.clamp(-a if signed else 0, a)
    if not signed:
        torch.testing.assert_close(y, (x.abs() - (x - a).abs() + a) / 2)
    torch.testing.assert_close(out, torch.round(y * n / a) * a / n)
    grad = torch.randn_like(x)
    found = torch.autograd.grad(out, (x, quantizer.range), grad)
    assert torch.equal(found[0], torch.where(x.abs() <= a, grad, 0))
    wanted = grad[x > a].sum() - grad[x < -a].sum()
    torch.testing.assert_close(found[1].squeeze(), wanted, rtol=1e-4, atol=1e-4)


def test_each_is_for_one_target():
    with pytest.raises(ValueError, match="a_quantizer=dict\\(type='PACTQuantizer'"):
        DoReFaQuantizer([2], 'activation')
    with pytest.raises(ValueError, match="w_quantizer=dict\\(type='DoReFaQuantizer'"):
        PACTQuantizer([2], 'weight', channels=4)
    quantizer = PACTQuantizer([1], 'activation')
    with pytest.raises(ValueError, match='at least 2 bits; found 1'):
        quantizer.calibrate(torch.randn(10))
