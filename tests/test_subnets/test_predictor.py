"""Predictors on targets whose dependence on the genes is known."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from mmmpq.subnets.predictor import (
    PREDICTORS,
    LinearPredictor,
    MLPPredictor,
    held_out_tau,
)

SIZES = (3, 4, 2, 5, 3)


def samples(count, seed=0):
    """One-hot genes of random rows, and the rows."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, SIZES, (count, len(SIZES)))
    one_hot = np.zeros((count, sum(SIZES)), np.float32)
    starts = np.cumsum([0, *SIZES[:-1]])
    np.put_along_axis(one_hot, rows + starts, 1, axis=1)
    return one_hot, rows


def test_the_linear_predictor_finds_additive_gains():
    genes, rows = samples(400)
    gains = [np.linspace(0, g + 1, m) for g, m in enumerate(SIZES)]
    values = 70 + sum(gain[rows[:, g]] for g, gain in enumerate(gains))
    linear = LinearPredictor().fit(genes, values)
    np.testing.assert_allclose(linear.predict(genes), values, atol=0.02)
    found = np.split(linear.weights, np.cumsum(SIZES)[:-1])
    for gain, weights in zip(gains, found, strict=True):  # up to a constant per gene
        np.testing.assert_allclose(weights - weights[0], gain, atol=0.02)


def test_the_perceptron_learns_what_no_sum_of_gains_is():
    genes, rows = samples(600)
    values = 1e-3 * np.where(rows[:, 0] == rows[:, 4], 1.0, -1.0) + 5
    mlp = MLPPredictor(hidden=(64, 64), batch=100).fit(genes[:500], values[:500])
    linear = LinearPredictor().fit(genes[:500], values[:500])
    rest = values[500:]
    errors = [np.abs(p.predict(genes[500:]) - rest).mean() for p in (mlp, linear)]
    assert errors[0] < 2e-4 < 5e-4 < errors[1]


def test_the_published_shape_and_the_same_numbers_for_the_same_seed():
    genes, rows = samples(50)
    values = rows.sum(1)
    one, same, other = (
        MLPPredictor(epochs=5, seed=s).fit(genes, values).predict(genes)
        for s in (1, 1, 2)
    )
    assert np.array_equal(one, same) and not np.allclose(one, other)
    net = MLPPredictor(epochs=1).fit(genes, values).net
    widths = [(m.in_features, m.out_features) for m in net[::2]]
    assert widths == [(17, 600), (600, 600), (600, 600), (600, 1)]


def test_all_equal_targets_are_predicted_as_they_are():
    genes, _ = samples(20)
    for make in PREDICTORS.values():
        predicted = make(0).fit(genes, np.full(20, 3.0)).predict(genes)
        np.testing.assert_allclose(predicted, 3.0, atol=0.2)


def test_tau_is_of_samples_that_were_not_learned_from():
    """A predictor that remembers ranks what it has seen perfectly, and only that."""

    class Remembers:
        def fit(self, genes, values):
            self.known = {g.tobytes(): v for g, v in zip(genes, values, strict=True)}
            return self

        def predict(self, genes):
            assert not any(g.tobytes() in self.known for g in genes)
            return genes[:, 0]

    genes = np.random.default_rng(0).random((50, 3))
    values = np.random.default_rng(1).random(50)
    tau = held_out_tau(Remembers, genes, values, seed=3)
    held = np.random.default_rng(3).permutation(50)[:10]
    assert tau == kendalltau(genes[held, 0], values[held]).statistic
    assert held_out_tau(Remembers, genes, genes[:, 0]) == pytest.approx(1)


def test_too_few_samples():
    with pytest.raises(ValueError, match='found 3; a predictor needs at least 4'):
        held_out_tau(LinearPredictor, np.eye(3), np.arange(3))
