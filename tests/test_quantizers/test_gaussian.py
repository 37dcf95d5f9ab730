"""EdMIPS's quantizers against the published formulas and constants."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from mmmpq.quantizers import GaussianQuantizer
from mmmpq.quantizers.gaussian import GAUSSIAN, HALF_WAVE

WIDTHS = range(1, 9)


def squared_error(step: float, edges: np.ndarray, levels: np.ndarray, low: float):
    """E (x - Q(x))² of a standard normal variable above ``low``, in closed form."""
    bounds = np.concatenate([[low], edges * step, [np.inf]])
    values = levels * step
    mass = np.diff(norm.cdf(bounds))
    first = -np.diff(norm.pdf(bounds))
    ends = np.where(np.isfinite(bounds), bounds, 0)
    second = mass - np.diff(ends * norm.pdf(bounds))
    return float((second - 2 * values * first + values**2 * mass).sum())


@pytest.mark.parametrize('bits', WIDTHS)
def test_constants_of_weights_minimise_the_squared_error(bits):
    half = 2 ** (bits - 1)
    levels = np.arange(-half, half) + 0.5
    edges = np.arange(-half + 1, half).astype(float)
    best = minimize_scalar(
        squared_error,
        bounds=(1e-3, 3),
        args=(edges, levels, -np.inf),
        method='bounded',
        options=dict(xatol=1e-7),
    )
    assert best.x == pytest.approx(GAUSSIAN[bits], rel=0.004)


@pytest.mark.parametrize('bits', WIDTHS)
def test_constants_of_activations_minimise_the_squared_error(bits):
    levels = np.arange(1.0, 2**bits)  # what is positive has no zero level
    best = minimize_scalar(
        squared_error,
        bounds=(1e-3, 3),
        args=(levels[1:] - 0.5, levels, 0.0),
        method='bounded',
        options=dict(xatol=1e-7),
    )
    assert best.x == pytest.approx(HALF_WAVE[bits], rel=0.005)


def test_squared_error_is_the_integral():
    def integrand(x):
        return (x - min(round(x / 0.5), 3) * 0.5) ** 2 * norm.pdf(x)

    points = [0.25, 0.75, 1.25]
    found = quad(integrand, 0, 10, points=points, limit=200)[0]
    edges, levels = np.array([0.5, 1.5, 2.5]), np.arange(4.0)
    assert squared_error(0.5, edges, levels, 0.0) == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize('bits', WIDTHS)
def test_weights(bits):
    w = torch.randn(16, 8, 3, 3, requires_grad=True)
    out = GaussianQuantizer([bits], 'weight', channels=16)(w, bits)
    s = GAUSSIAN[bits] * w.detach().std()
    top = (2 ** (bits - 1) - 0.5) * s
    wanted = ((torch.round(w / s + 0.5) - 0.5) * s).clamp(-top, top)
    torch.testing.assert_close(out, wanted)
    assert len(out.unique()) <= 2**bits
    assert (out != 0).all()
    (grad,) = torch.autograd.grad(out, w, torch.ones_like(out) * 0.3)
    assert (grad == 0.3).all()


@pytest.mark.parametrize('bits', WIDTHS)
def test_activations(bits):
    x = torch.randn(4, 8, 10, 10).relu().requires_grad_()
    quantizer = GaussianQuantizer([bits], 'activation')
    out = quantizer(x, bits)
    s = HALF_WAVE[bits]
    top = s * (2**bits - 1)
    torch.testing.assert_close(out, torch.round(x.clamp(0, top) / s) * s)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(grad, (x <= top).float())
    assert not list(quantizer.parameters())


def test_signed_activations_take_the_grid_of_weights():
    x = torch.randn(1000) * 5
    out = GaussianQuantizer([3], 'activation')(x, 3)
    weights = GaussianQuantizer([3], 'weight')(x, 3)
    torch.testing.assert_close(out, weights, rtol=1e-3, atol=0)


def test_measured_spread():
    x = (torch.randn(100_000) * 7).relu()
    quantizer = GaussianQuantizer([4], 'activation', normalised=False)
    quantizer.calibrate(x)
    assert quantizer.spread.item() == pytest.approx(7, rel=0.02)
    published = GaussianQuantizer([4], 'activation')
    published.calibrate(x)
    assert published.spread.item() == 1


def test_mix_with_float():
    w = torch.randn(50, requires_grad=True)
    quantizer = GaussianQuantizer([2, 32], 'weight')
    probs = torch.tensor([0.3, 0.7], requires_grad=True)
    out = quantizer.mix(w, [2, 32], probs)
    torch.testing.assert_close(out, 0.3 * quantizer(w, 2) + 0.7 * w)
    grads = torch.autograd.grad(out.sum(), (w, probs))
    torch.testing.assert_close(grads[0], torch.ones(50))
    torch.testing.assert_close(
        grads[1], torch.stack([quantizer(w, 2).sum(), w.sum()]).detach()
    )
