"""Scale-Clip's fixed points and losses, and the least squares range."""

import pytest
import torch

from mmmpq.quantizers import (
    LinearQuantizer,
    fake_quantize,
    least_squares_range,
    scale_clip_range,
)
from mmmpq.quantizers.functional import uniform_levels


@pytest.mark.parametrize(
    ('k', 'mean', 'clipped', 'kurtosis'),
    [(2.0, 0.733, 0.14, 2.01), (1.5, 0.593, 0.37, 1.53), (3.0, 0.791, 0.017, 2.70)],
)
def test_fixed_points(k, mean, clipped, kurtosis):
    x = reclipped(k)
    top = x.abs().max()
    assert float(top / x.abs().mean()) == pytest.approx(k, rel=1e-3)
    assert float(x.abs().mean()) == pytest.approx(mean, abs=0.005)
    share = float((x.abs() > 0.999 * top).float().mean())
    assert share == pytest.approx(clipped, rel=0.05)
    moments = (x**4).mean() / (x**2).mean() ** 2
    assert float(moments) == pytest.approx(kurtosis, abs=0.02)


def test_small_ratios_collapse():
    assert float(reclipped(0.8).abs().max()) < 1e-6


def reclipped(k):
    x = torch.randn(100_000)
    for _ in range(500):
        top = float(scale_clip_range(x, k))
        x = x.clamp_(-top, top)
    return x


def test_low_bits_like_uniform_weights():
    """Relative 4-bit losses, in the source Laplace .133, Gaussian .096, uniform .059.

    With 15 levels, zero among them, the least loss of a uniform distribution is 1 / 15,
    and all three are higher than in the source, in nearly the same proportion.
    """
    uniform = torch.rand(200_000) * 2 - 1
    laplace = torch.distributions.Laplace(0.0, 1.0).sample((200_000,))
    losses = {}
    samples = dict(laplace=laplace, gaussian=torch.randn(200_000), uniform=uniform)
    for name, x in samples.items():
        ranges = x.abs().max() * torch.linspace(0.05, 1, 100)
        losses[name] = min(loss(x, a) for a in ranges)
    assert losses['uniform'] == pytest.approx(1 / 15, rel=0.02)
    ratio = losses['gaussian'] / losses['uniform']
    assert ratio == pytest.approx(0.096 / 0.059, rel=0.1)
    ratio = losses['laplace'] / losses['gaussian']
    assert ratio == pytest.approx(0.133 / 0.096, rel=0.1)


def loss(x, a, bits=4, signed=True):
    low, high = uniform_levels(bits, signed)
    return float((x - fake_quantize(x, a / high, (low, high))).norm() / x.norm())


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
@pytest.mark.parametrize('signed', [True, False])
def test_least_squares_beats_its_neighbours(bits, signed):
    x = torch.randn(2, 4000)
    x = x if signed else x.relu()
    found = least_squares_range(x, uniform_levels(bits, signed))
    for row, a in zip(x, found, strict=True):
        best = loss(row, a, bits, signed)
        for factor in (0.5, 0.7, 2 ** (-1 / 32), 2 ** (1 / 32), 1.3, 2):
            other = a * factor
            assert best <= loss(row, other, bits, signed) + 1e-7


@pytest.mark.parametrize('spread', [4, 300])
def test_the_fit_knows_no_longest_tail(spread):
    """The range of the rest is found below an extreme of any size."""
    rest = torch.randn(1, 400_000)
    alone = least_squares_range(rest, (-1, 1))
    with_extreme = torch.cat([rest, torch.full((1, 1), float(spread))], dim=1)
    found = least_squares_range(with_extreme, (-1, 1))
    assert found.item() == pytest.approx(alone.item(), rel=0.3)


@pytest.mark.parametrize(
    ('bits', 'with_zero', 'all_levels'),
    [(2, 0.1902, 0.1188), (3, 0.0463, 0.03744)],
)
def test_levels_of_a_normal_variable(bits, with_zero, all_levels):
    """Published errors of the optimal uniform quantizers with 3 / 4 and 7 / 8 levels.

    Source: Quantizing for Minimum Distortion, 1960, table II.
    """
    x = torch.special.ndtri((torch.arange(200_000) + 0.5) / 200_000)[None]
    for wanted, full in ((with_zero, False), (all_levels, True)):
        quantizer = LinearQuantizer((bits,), 'weight', all_levels=full)
        quantizer.calibrate(x)
        error = (quantizer(x, bits) - x).detach().square().mean()
        assert error.item() == pytest.approx(wanted, rel=0.02)


def test_ranges_of_nothing_are_positive():
    assert (least_squares_range(torch.zeros(2, 5), (-1, 1)) > 0).all()
    assert least_squares_range(torch.ones(1, 5) * 3, None) == 3
