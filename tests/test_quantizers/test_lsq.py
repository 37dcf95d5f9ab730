"""LSQ's formulas."""

import pytest
import torch

from mmmpq.quantizers import LSQQuantizer


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('signed', [True, False])
def test_values_start_and_gradient(bits, signed):
    x = torch.randn(400) if signed else torch.rand(400)
    quantizer = LSQQuantizer((bits,), 'weight' if signed else 'activation')
    quantizer.calibrate(x)
    low, high = (
        (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    )
    s = quantizer.step.detach()[0, 0]
    torch.testing.assert_close(s, 2 * x.abs().mean() / high**0.5)
    out = quantizer(x, bits)
    v = x / s
    torch.testing.assert_close(out, v.clamp(low, high).round() * s)
    out.sum().backward()
    # Learned Step Size Quantization, equations 3 and 5
    grad = torch.where(
        v <= low,
        torch.tensor(float(low)),
        torch.where(v >= high, torch.tensor(float(high)), v.round() - v),
    )
    wanted = grad.sum() / (400 * high) ** 0.5
    torch.testing.assert_close(quantizer.step.grad[0, 0], wanted, rtol=1e-4, atol=1e-5)


def test_a_negative_step_counts_by_its_size():
    quantizer = LSQQuantizer((4,), 'weight')
    x = torch.randn(20)
    quantizer.calibrate(x)
    before = quantizer(x, 4)
    with torch.no_grad():
        quantizer.step.neg_()
    assert torch.equal(quantizer(x, 4), before)


def test_per_channel():
    weight = torch.randn(3, 7) * torch.tensor([[1.0], [5.0], [25.0]])
    quantizer = LSQQuantizer((2, 4), 'weight', per_channel=True, channels=3)
    quantizer.calibrate(weight)
    wanted = 2 * weight.abs().mean(1) / 7**0.5
    torch.testing.assert_close(quantizer.step[1].detach(), wanted)
    for bits in (2, 4):
        single = LSQQuantizer((bits,), 'weight')
        single.calibrate(weight[1])
        torch.testing.assert_close(quantizer(weight, bits)[1], single(weight[1], bits))


def test_bad_arguments():
    with pytest.raises(ValueError, match='at least 2 bits'):
        LSQQuantizer((1,), 'activation')
    with pytest.raises(ValueError, match='per_channel'):
        LSQQuantizer((4,), 'activation', per_channel=True)
