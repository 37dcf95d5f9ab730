"""Accuracy of a subnet, predicted from its genes."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from scipy.stats import kendalltau
from sklearn.linear_model import RidgeCV
from torch import nn

from mmmpq.randomness import isolated_randomness


class Predictor(Protocol):
    """From one-hot genes to a number, the larger the better the subnet."""

    def fit(self, genes: np.ndarray, values: np.ndarray) -> 'Predictor':
        """Learns from genes (n, d) and values (n,); returns itself."""

    def predict(self, genes: np.ndarray) -> np.ndarray:
        """Values (n,), float64, of genes (n, d)."""


class MLPPredictor:
    """A perceptron d-600-600-600-1 with ReLUs, trained on standardised values.

    Source: BatchQuant: Quantized-for-all Architecture Search with Robust Quantizer,
    2021, arXiv 2105.08952, where d = 555. Adam's learning rate, batch and epochs are
    the published ones; standardising is ours.

    Args:
        hidden: Widths of the hidden layers.
        lr: Adam's learning rate.
        batch: Samples a step, all if there are fewer.
        epochs: Passes over the samples.
        seed: Of weights and order; the same numbers come out for the same seed.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (600, 600, 600),
        lr: float = 3e-3,
        batch: int = 2048,
        epochs: int = 100,
        seed: int = 0,
    ) -> None:
        self.hidden, self.lr, self.batch = tuple(hidden), lr, batch
        self.epochs, self.seed = epochs, seed

    def fit(self, genes: np.ndarray, values: np.ndarray) -> 'MLPPredictor':
        values = np.asarray(values, np.float64)
        self.mean, self.std = values.mean(), values.std() or 1.0
        x = torch.as_tensor(np.asarray(genes, np.float32))
        y = torch.as_tensor((values - self.mean) / self.std).float()
        with isolated_randomness(self.seed):
            self.net = _perceptron(x.shape[1], self.hidden)
            adam = torch.optim.Adam(self.net.parameters(), self.lr)
            for _ in range(self.epochs):
                for rows in torch.randperm(len(x)).split(self.batch):
                    loss = (self.net(x[rows])[:, 0] - y[rows]).square().mean()
                    adam.zero_grad()
                    loss.backward()
                    adam.step()
        return self

    @torch.no_grad()
    def predict(self, genes: np.ndarray) -> np.ndarray:
        out = self.net(torch.as_tensor(np.asarray(genes, np.float32)))[:, 0]
        return out.double().numpy() * self.std + self.mean


class LinearPredictor:
    """Ridge regression; its strength is the one of least leave-one-out error.

    Attributes:
        weights: What each one-hot gene adds (d,), after :meth:`fit`.
    """

    STRENGTHS = tuple(10.0**k for k in np.arange(-3, 3.5, 0.5))

    def fit(self, genes: np.ndarray, values: np.ndarray) -> 'LinearPredictor':
        self.model = RidgeCV(self.STRENGTHS).fit(np.asarray(genes, np.float64), values)
        self.weights = self.model.coef_
        return self

    def predict(self, genes: np.ndarray) -> np.ndarray:
        return self.model.predict(np.asarray(genes, np.float64))


PREDICTORS: dict[str, Callable[[int], Predictor]] = {
    'mlp': lambda seed: MLPPredictor(seed=seed),
    'linear': lambda seed: LinearPredictor(),
}


def held_out_tau(
    make: Callable[[], Predictor],
    genes: np.ndarray,
    values: np.ndarray,
    share: float = 0.2,
    seed: int = 0,
) -> float:
    """Rank correlation of predicted and measured values on samples not learned from.

    Kendall's tau-b: (concordant - discordant) / sqrt((pairs untied in one) · (pairs
    untied in the other)).

    Args:
        make: Makes a new predictor.
        genes: (n, d).
        values: (n,).
        share: Of the samples that is held out, at least two.
        seed: Of the split.

    Raises:
        ValueError: Fewer than four samples.
    """
    if len(values) < 4:
        raise ValueError(f'samples: found {len(values)}; a predictor needs at least 4')
    order = np.random.default_rng(seed).permutation(len(values))
    count = max(2, round(share * len(values)))
    held, rest = order[:count], order[count:]
    predictor = make().fit(genes[rest], values[rest])
    return float(kendalltau(predictor.predict(genes[held]), values[held]).statistic)


def _perceptron(inputs: int, hidden: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 1))
