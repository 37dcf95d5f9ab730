"""LSQ+: learned spans and zero points."""

import pytest
import torch
from torch.nn import functional as F

from mmmpq.quantizers import LinearQuantizer, LSQPlusQuantizer


def quantizer_of(x, bits):
    quantizer = LSQPlusQuantizer((bits,), 'activation')
    quantizer.calibrate(x)
    return quantizer


def grid(quantizer, bits):
    """Span a, share u and zero point z."""
    a, u = quantizer.clip()[0, 0], quantizer.zero.detach()[0, 0]
    return a, u, (u.clamp(0, 1) * (2**bits - 1)).round()


@pytest.mark.parametrize('bits', range(2, 9))
def test_values(bits):
    x = F.silu(2 * torch.randn(3000))
    quantizer = quantizer_of(x, bits)
    a, _, z = grid(quantizer, bits)
    n = 2**bits - 1
    out = quantizer(x, bits).detach()
    torch.testing.assert_close(out, ((x * n / a + z).clamp(0, n).round() - z) * a / n)
    assert quantizer(torch.zeros(3), bits).eq(0).all()  # as padding needs


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_gradients(bits):
    """As published for s and β, which are a / n and -u · a here."""
    x = F.silu(2 * torch.randn(500))
    quantizer = quantizer_of(x, bits)
    with torch.no_grad():
        quantizer.range.mul_(0.8)  # some values outside, above and below
    quantizer(x, bits).sum().backward()
    a, _, z = grid(quantizer, bits)
    n = 2**bits - 1
    v = x * n / a + z
    low, high = v < 0, v > n
    inside = ~low & ~high
    to_s = torch.where(inside, v.round() - v, torch.where(low, 0.0, float(n)))
    to_beta = (~inside).float()
    # Published, with β fixed; z = -β / s of the formula is what was rounded.
    to_a = to_s / n - torch.where(inside, torch.zeros(()), z / n)
    scale = min(n, 7) ** 1.5 / 500**0.5 / quantizer.unit[0] ** 2
    wanted = to_a.sum() * quantizer.unit[0] * scale
    torch.testing.assert_close(quantizer.range.grad[0, 0], wanted, rtol=1e-4, atol=1e-4)
    wanted = -a * to_beta.sum() * scale
    torch.testing.assert_close(quantizer.zero.grad[0, 0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('act', [F.silu, F.gelu, F.hardswish])
@pytest.mark.parametrize('bits', [2, 3])
def test_the_start_is_the_best_of_all_grids(act, bits):
    x = act(torch.randn(2000))
    quantizer = quantizer_of(x, bits)
    found = (quantizer(x, bits) - x).detach().square().mean()
    n = 2**bits - 1
    steps = torch.linspace(0.02, 2, 300)[:, None]
    for z in range(n + 1):
        out = ((x / steps + z).round().clamp(0, n) - z) * steps
        assert found <= (out - x).square().mean(1).min() * 1.01


@pytest.mark.parametrize(('bits', 'factor'), [(2, 2.0), (3, 2.0), (4, 2.0)])
def test_signed_activations_waste_no_levels(bits, factor):
    """A whole bit: the symmetric grid has half of its levels below zero."""
    x = F.silu(torch.randn(5000))
    errors = []
    for kind in (LinearQuantizer, LSQPlusQuantizer):
        quantizer = kind((bits,), 'activation')
        quantizer.calibrate(x)
        errors.append((quantizer(x, bits) - x).detach().square().mean())
    assert errors[0] > factor * errors[1]


def test_without_negative_values_it_is_the_linear_one():
    x = torch.randn(300).relu().requires_grad_()
    outs = []
    for kind in (LinearQuantizer, LSQPlusQuantizer):
        quantizer = kind((2, 4), 'activation')
        quantizer.calibrate(x)
        out = quantizer.mix(x, (2, 4), torch.tensor([0.3, 0.7]))
        out.square().sum().backward()
        outs.append((out.detach(), quantizer.range.grad))
    for a, b in zip(*outs, strict=True):
        assert torch.equal(a, b)
    assert quantizer.zero.grad.eq(0).all()  # and takes part: DDP waits for it


def test_training_finds_the_zero_point():
    """From a bad start, by either optimizer."""
    x = F.silu(torch.randn(4000)) - 0.2
    for optimizer, rate in ((torch.optim.SGD, 0.01), (torch.optim.Adam, 0.01)):
        quantizer = quantizer_of(x, 4)
        best = (quantizer(x, 4) - x).detach().square().mean()
        with torch.no_grad():
            quantizer.zero.fill_(0.5)
        stepper = optimizer(quantizer.parameters(), lr=rate)
        for _ in range(300):
            stepper.zero_grad()
            (quantizer(x, 4) - x).square().sum().backward()
            stepper.step()
        error = (quantizer(x, 4) - x).detach().square().mean()
        assert error < 1.3 * best


def test_select_and_load():
    x = F.silu(torch.randn(500))
    quantizer = LSQPlusQuantizer((2, 4, 8), 'activation')
    quantizer.calibrate(x)
    wanted = quantizer(x, 4)
    other = LSQPlusQuantizer((4, 8), 'activation')
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(x, 4), wanted)
    quantizer.select(4)
    assert torch.equal(quantizer(x, 4), wanted)
    assert quantizer.zero.shape == quantizer.range.shape == (1, 1)
