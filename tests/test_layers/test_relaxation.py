"""Softmax and Gumbel-softmax over joint and factorised logits."""

import pytest
import torch

from mmmpq.layers import GumbelSoftmax, MixedConv2d, Softmax
from mmmpq.policy import parse_candidates

PAIRS = parse_candidates([(8, 8), (2, 2), (2, 3), (4, 4)])
GRID = parse_candidates([(w, a) for a in (2, 4) for w in (8, 3, 2)])


def test_softmax_with_temperature():
    relaxation = Softmax(PAIRS, temperature=0.5)
    with torch.no_grad():
        relaxation.logits.copy_(torch.tensor([0.0, 1.0, 2.0, -1.0]))
    wanted = torch.tensor([0.0, 2.0, 4.0, -2.0]).exp()
    torch.testing.assert_close(relaxation.probs(), wanted / wanted.sum())
    assert torch.equal(relaxation.mixture(), relaxation.probs())


def test_starts_uniform_whatever_the_start_value():
    for init in (0, 0.01, 3):
        probs = Softmax(PAIRS, init=init).probs()
        torch.testing.assert_close(probs, torch.full((4,), 0.25))


@pytest.mark.parametrize('factorised', [False, True])
def test_marginals(factorised):
    relaxation = Softmax(GRID, factorised=factorised)
    with torch.no_grad():
        relaxation.logits.normal_()
    p = relaxation.probs()
    w, a = relaxation.marginals(p)
    assert relaxation.w_bits == (2, 3, 8)
    assert relaxation.a_bits == (2, 4)
    for i, bits in enumerate(relaxation.w_bits):
        wanted = sum(p[j] for j, c in enumerate(GRID) if c.w_bits == bits)
        torch.testing.assert_close(w[i], wanted)
    for i, bits in enumerate(relaxation.a_bits):
        wanted = sum(p[j] for j, c in enumerate(GRID) if c.a_bits == bits)
        torch.testing.assert_close(a[i], wanted)
    if factorised:
        logits = relaxation.logits.split([3, 2])
        torch.testing.assert_close(w, torch.softmax(logits[0], 0))
        torch.testing.assert_close(a, torch.softmax(logits[1], 0))
        for j, c in enumerate(GRID):
            i, k = relaxation.w_bits.index(c.w_bits), relaxation.a_bits.index(c.a_bits)
            torch.testing.assert_close(p[j], w[i] * a[k])


def test_path_is_one_hot_with_the_gradient_of_probs():
    relaxation = Softmax(PAIRS)
    relaxation.choice = 2
    assert relaxation.path().tolist() == [0, 0, 1, 0]
    logits = relaxation.logits.requires_grad_()
    path = relaxation.path()
    assert path.tolist() == pytest.approx([0, 0, 1, 0])
    weights = torch.randn(4)
    found = torch.autograd.grad(path @ weights, logits)
    wanted = torch.autograd.grad(relaxation.probs() @ weights, logits)
    torch.testing.assert_close(found, wanted)


def test_gumbel_noise_has_gumbels_moments_and_argmax_samples_softmax():
    relaxation = GumbelSoftmax(PAIRS, temperature=0.1)
    with torch.no_grad():
        relaxation.logits.copy_(torch.tensor([0.0, 1.0, -1.0, 0.5]))
    generator = torch.Generator().manual_seed(1)
    noise, wins = [], torch.zeros(4)
    for _ in range(4000):
        relaxation.draw(generator)
        noise.append(relaxation.noise.clone())
        mixture = relaxation.mixture()
        wins[mixture.argmax()] += 1
    noise = torch.stack(noise)
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.03)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.06)
    torch.testing.assert_close(wins / 4000, relaxation.probs(), rtol=0, atol=0.03)
    torch.testing.assert_close(mixture.sum(), torch.tensor(1.0))
    wanted = torch.softmax((relaxation.logits + relaxation.noise) / 0.1, 0)
    torch.testing.assert_close(mixture, wanted)


def test_gumbel_draws_nothing_in_eval_and_repeats_with_the_seed():
    relaxation = GumbelSoftmax(GRID, factorised=True, temperature=5.0)
    relaxation.draw(torch.Generator().manual_seed(3))
    first = relaxation.mixture()
    assert not torch.allclose(first, relaxation.probs())
    relaxation.draw(torch.Generator().manual_seed(3))
    assert torch.equal(relaxation.mixture(), first)
    relaxation.eval()
    assert torch.equal(relaxation.mixture(), relaxation.probs())


def test_temperature_schedule():
    """tau = T exp(-η epoch), which probs and the softmax do not know."""
    relaxation = GumbelSoftmax(PAIRS, temperature=5.0, anneal=0.025)
    assert relaxation.tau == 5.0
    with torch.no_grad():
        relaxation.logits.copy_(torch.tensor([0.0, 1.0, -1.0, 0.5]))
    probs = relaxation.probs()
    relaxation.draw(torch.Generator().manual_seed(2))
    for epoch, tau in [(0.5, 4.93789), (10, 3.89400), (90, 0.526996)]:
        relaxation.epoch = epoch
        assert relaxation.tau == pytest.approx(tau, rel=1e-5)
        wanted = torch.softmax((relaxation.logits + relaxation.noise) / tau, 0)
        torch.testing.assert_close(relaxation.mixture(), wanted)
        assert torch.equal(relaxation.probs(), probs)
    relaxation.epoch = 1e6  # no division by zero, but a one-hot
    assert sorted(relaxation.mixture().tolist()) == [0, 0, 0, 1]
    assert GumbelSoftmax(PAIRS, temperature=2.0).tau == 2.0


@pytest.mark.parametrize('factorised', [False, True])
@pytest.mark.parametrize('epoch', [0.0, 60.0])
def test_frequency_of_the_argmax_is_softmax_at_any_temperature(factorised, epoch):
    relaxation = GumbelSoftmax(
        GRID, factorised=factorised, temperature=5.0, anneal=0.025
    )
    relaxation.epoch = epoch
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        relaxation.logits.normal_(generator=generator)
    draws, wins = 4000, torch.zeros(6)
    for _ in range(draws):
        relaxation.draw(generator)
        wins[relaxation.mixture().argmax()] += 1
    p = relaxation.probs()
    sigma = (p * (1 - p) / draws).sqrt()
    assert ((wins / draws - p).abs() < 4 * sigma).all()


@pytest.mark.parametrize('anneal', [-0.1, float('nan'), float('inf')])
def test_bad_annealing(anneal):
    with pytest.raises(ValueError, match=r'\.anneal: found'):
        GumbelSoftmax(PAIRS, anneal=anneal)


@pytest.mark.parametrize('cls', [Softmax, GumbelSoftmax])
def test_bad_arguments(cls):
    with pytest.raises(ValueError, match=r'factorised: needs every pair.*W8A8, W2A2'):
        cls(PAIRS, factorised=True)
    with pytest.raises(ValueError, match='temperature: found 0'):
        cls(PAIRS, temperature=0)


# --- dropping candidates --------------------------------------------------------------


def converging(logits, drop=1e-3, **kwargs):
    layer = MixedConv2d(
        3,
        4,
        3,
        candidates=[(2, 2), (3, 3), (4, 4), (8, 4)],
        mixing='outputs',
        relaxation=dict(type='Softmax', drop=drop),
        **kwargs,
    )
    with torch.no_grad():
        layer.relaxation.logits.copy_(torch.tensor(logits))
    return layer


@pytest.mark.parametrize('own', [False, True])
@pytest.mark.parametrize('logits', [[-9.0, 3.0, 1.0, -8.0], [4.0, -6.0, -6.0, -6.0]])
def test_dropping_moves_the_output_within_its_bound(logits, own, monkeypatch):
    layer = converging(logits, own_weights=own)
    x = torch.randn(2, 3, 9, 9)
    exact = layer(x)
    probs = layer.relaxation.probs()
    convs = []
    monkeypatch.setattr(
        MixedConv2d,
        'compute',
        lambda self, *a: convs.append(1) or self._conv_forward(*a),
    )
    layer(x)
    before = len(convs)
    layer.relaxation.prune(probs.tolist())
    dropped = layer(x)
    assert len(convs) - before < before  # whole activation widths are left out
    left = float(sum(p for p in probs if p < 1e-3))
    assert 0 < left <= 3 * 1e-3
    largest = 0.0
    for j in range(4):
        layer.mixing, layer.relaxation.choice = 'sampled', j
        largest = max(largest, float(layer(x).abs().max()))
    assert 0 < float((dropped - exact).abs().max()) <= 2 * left * largest


def test_dropped_parameters_get_a_gradient_of_zero():
    """DDP waits for it; and evaluation leaves nothing out."""
    layer = converging([4.0, -6.0, -6.0, -6.0], own_weights=True)
    x = torch.randn(1, 3, 5, 5)
    layer(x)
    layer.relaxation.prune(layer.relaxation.probs().tolist())
    layer(x).sum().backward()
    trained = [p for p in layer.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)
    assert not layer.own['1'].weight.grad.any()
    assert layer.relaxation.active() == [0]
    assert layer.eval().relaxation.active() is None


def test_skip_does_not_drop_the_others():
    relaxation = Softmax(parse_candidates([(0, 0), (2, 2), (4, 4)]))
    relaxation.prune([0.9999, 0.00006, 0.00004])
    assert relaxation.active() is None
    relaxation.prune([0.9, 0.1, 0.00001])
    assert relaxation.active() == [1]


@pytest.mark.parametrize('drop', [-0.1, 0.5])
def test_bad_drop(drop):
    with pytest.raises(ValueError, match=r'relaxation.drop: found .*1 / 2'):
        Softmax(parse_candidates([(2, 2), (4, 4)]), drop=drop)
