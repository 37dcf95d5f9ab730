"""Softmax and Gumbel-softmax, over joint or factorised logits."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmmpq.layers.relaxation import Relaxation
from mmmpq.policy import Precision
from mmmpq.registry import RELAXATIONS
from mmmpq.transfer import send

TAU_MIN = 1e-6  # a one-hot as good as any


@RELAXATIONS.register_module()
class Softmax(Relaxation):
    """p = softmax(theta / temperature).

    Joint: one logit per candidate pair. Factorised: logits for w and for a, with
    p(w, a) = p(w) · p(a); the candidates must then be all pairs of their widths.

    Args:
        candidates: The m candidate precisions.
        factorised: Separate logits for weight and activation widths.
        temperature: Divides the logits.
        **kwargs: ``init``, ``group`` and ``drop``, as of :class:`Relaxation`.

    Raises:
        ValueError: ``factorised`` with candidates that are no full grid.
    """

    def __init__(
        self,
        candidates: Sequence[Precision],
        factorised: bool = False,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(candidates, **kwargs)
        if not temperature > 0:
            raise ValueError(
                f'relaxation.temperature: found {temperature!r}; accepted are '
                'numbers > 0'
            )
        self.factorised = factorised
        self.temperature = temperature
        if factorised:
            self.require_grid('relaxation.factorised')
            self.set_logits(sum(self._sizes()), kwargs.get('init', 0.0))

    def _sizes(self) -> tuple[int, ...]:
        if self.factorised:
            return len(self.w_bits), len(self.a_bits)
        return (len(self.candidates),)

    def _relax(self, logits: Tensor, temperature: float) -> Tensor:
        parts = [
            torch.softmax(part / temperature, 0) for part in logits.split(self._sizes())
        ]
        if self.factorised:
            return parts[0][self.w_index] * parts[1][self.a_index]
        return parts[0]

    def probs(self) -> Tensor:
        return self._relax(self.logits, self.temperature)

    def tilt(self, costs: Tensor) -> Tensor:
        """Factorised logits take the mean over the pairs that share a width."""
        if not self.factorised:
            return costs
        parts = []
        for places, count in zip(
            (self.w_places, self.a_places), self._sizes(), strict=True
        ):
            index = torch.tensor(places)
            total = costs.new_zeros(count).index_add(0, index, costs)
            parts.append(total / torch.bincount(index, minlength=count))
        return torch.cat(parts)


@RELAXATIONS.register_module()
class GumbelSoftmax(Softmax):
    """m_k = exp((theta_k + g_k) / tau) / Σ, with Gumbel noise g drawn once a step.

    The largest m_k is candidate k with probability softmax(theta)_k, whatever the
    temperature tau: these are ``probs``, and what is mixed outside training.

    Source: Categorical Reparameterization with Gumbel-Softmax, 2016, arXiv 1611.01144;
    the annealing: Mixed Precision Quantization of ConvNets via Differentiable Neural
    Architecture Search, 2018, arXiv 1812.00090.

    Args:
        candidates, factorised, init, group: As in :class:`Softmax`.
        temperature: tau at the start.
        anneal: tau = temperature · exp(-anneal · ``epoch``).
    """

    def __init__(self, *args, anneal: float = 0.0, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if not 0 <= anneal < math.inf:
            raise ValueError(
                f'relaxation.anneal: found {anneal!r}; accepted are numbers >= 0'
            )
        self.anneal = anneal
        self.register_buffer('noise', torch.zeros_like(self.logits))

    @property
    def tau(self) -> float:
        """The present temperature; no lower than what float32 can divide by."""
        return max(self.temperature * math.exp(-self.anneal * self.epoch), TAU_MIN)

    def probs(self) -> Tensor:
        """Probabilities softmax(theta) over the candidates (m,)."""
        return self._relax(self.logits, 1.0)

    def mixture(self) -> Tensor:
        """While training, a relaxed one-hot sample over the candidates (m,)."""
        if not self.training:
            return self.probs()
        return self._relax(self.logits + self.noise, self.tau)

    def draw(self, generator: torch.Generator) -> None:
        noise = gumbel(self.noise.numel(), generator)
        self.noise.copy_(send(noise, self.noise.device))


def gumbel(count: int, generator: torch.Generator) -> Tensor:
    """Numbers -log(-log u) of the standard Gumbel distribution (count,)."""
    uniform = torch.rand(count, generator=generator).clamp_min(1e-20)
    return -torch.log(-torch.log(uniform))
