"""A layer set up as EdMIPS's against its formulas in plain tensors."""

import torch
from torch.nn import functional as F

from mmmpq.layers import MixedConv2d
from mmmpq.quantizers.gaussian import GAUSSIAN, HALF_WAVE

W_BITS, A_BITS = (1, 2, 3, 4), (2, 3, 4)


def straight_through(value, smooth):
    return smooth + (value - smooth).detach()


def closed_form(x, weight, theta_w, theta_a):
    """conv(Σ π_a Q_a(x), Σ π_w Q_w(W)), differentiated by autograd."""
    std = weight.detach().std()
    mixed_w = mixed_x = 0
    for p, bits in zip(torch.softmax(theta_w, 0), W_BITS, strict=True):
        s, top = GAUSSIAN[bits] * std, 2 ** (bits - 1) - 0.5
        q = ((torch.round(weight / s + 0.5) - 0.5) * s).clamp(-top * s, top * s)
        mixed_w = mixed_w + p * straight_through(q, weight)
    for p, bits in zip(torch.softmax(theta_a, 0), A_BITS, strict=True):
        s = HALF_WAVE[bits]
        clipped = x.clamp(0, s * (2**bits - 1))
        mixed_x = mixed_x + p * straight_through(torch.round(clipped / s) * s, clipped)
    return F.conv2d(mixed_x, mixed_w, padding=1)


def test_forward_and_all_gradients_are_the_closed_forms():
    layer = MixedConv2d(
        5,
        6,
        3,
        padding=1,
        bias=False,
        candidates=[(w, a) for w in W_BITS for a in A_BITS],
        quantizer=dict(type='GaussianQuantizer'),
        relaxation=dict(type='Softmax', factorised=True, init=0.01),
        mixing='composite',
    )
    logits = layer.relaxation.logits
    assert torch.equal(logits, torch.full((7,), 0.01))
    with torch.no_grad():
        logits += torch.randn(7)
    logits.requires_grad_(True)
    x = torch.randn(3, 5, 10, 11).relu().requires_grad_()
    theta = logits.detach().clone().requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    found, wanted = layer(x), closed_form(x, weight, theta[:4], theta[4:])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(found)
    found = torch.autograd.grad(found, (x, layer.weight, logits), grad)
    wanted = torch.autograd.grad(wanted, (x, weight, theta), grad)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-3)
