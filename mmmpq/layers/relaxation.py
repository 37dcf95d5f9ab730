"""Relaxations: from the logits of a group to probabilities over its candidates."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmmpq.policy import SKIP, Precision
from mmmpq.registry import RELAXATIONS
from mmmpq.transfer import send

TAU_MIN = 1e-6  # a one-hot as good as any


@RELAXATIONS.register_module()
class Softmax(nn.Module):
    """p = softmax(theta / temperature), shared by the layers of one group.

    Joint: one logit per candidate pair. Factorised: logits for w and for a, with
    p(w, a) = p(w) · p(a); the candidates must then be all pairs of their widths.

    The logits are parameters without ``requires_grad``: the optimizer of the weights
    and DDP pass them by, and the search alone turns their gradient on.

    Args:
        candidates: The m candidate precisions.
        factorised: Separate logits for weight and activation widths.
        temperature: Divides the logits.
        init: Value that all logits start from.
        group: Name of the group, for logs and reports.
        drop: Coefficient below which, at the start of an iteration, mixing 'outputs'
            leaves a candidate out of its computation (not out of the choice), so that a
            search gets cheaper as it converges. With ε, at most (m - 1) · drop, the sum
            of what is left out, the output moves by at most 2 ε times the largest
            candidate's.

    Raises:
        ValueError: ``factorised`` with candidates that are no full grid.
    """

    epoch: float = 0.0  # of the search, set before every iteration

    def __init__(
        self,
        candidates: Sequence[Precision],
        factorised: bool = False,
        temperature: float = 1.0,
        init: float = 0.0,
        group: str = '',
        drop: float = 1e-3,
    ) -> None:
        super().__init__()
        if not 0 <= drop < 1 / len(candidates):
            raise ValueError(
                f'relaxation.drop: found {drop!r}; accepted are numbers from 0 to '
                f'below 1 / {len(candidates)}, the share of each candidate'
            )
        if not temperature > 0:
            raise ValueError(
                f'relaxation.temperature: found {temperature!r}; accepted are '
                'numbers > 0'
            )
        self.candidates: tuple[Precision, ...] = tuple(candidates)
        self.factorised = factorised
        self.temperature = temperature
        self.group = group
        self.drop = drop
        self.choice: int | None = None  # the path that mixing 'sampled' takes
        self.handed: dict[bool, Any] = {}  # Shares of a step, of the path or not
        self._kept: list[int] | None = None
        self.owned = False  # whether a layer holds it as its submodule
        self.skip = self.candidates.index(SKIP) if SKIP in self.candidates else None
        self.w_bits = tuple(sorted({c.w_bits for c in self.candidates} - {0}))
        self.a_bits = tuple(sorted({c.a_bits for c in self.candidates} - {0}))
        full = len(self.w_bits) * len(self.a_bits) == len(self.candidates)
        if factorised and (not full or self.skip is not None):
            raise ValueError(
                'relaxation.factorised: needs every pair of the widths '
                f'{list(self.w_bits)} and {list(self.a_bits)} among the candidates; '
                f'found {", ".join(map(str, self.candidates))}'
            )
        sizes = self._sizes()
        self.logits = nn.Parameter(
            torch.full((sum(sizes),), float(init)), requires_grad=False
        )
        # Skip has no width: the layers never see its probability, so any index will do.
        first = self.w_bits[0], self.a_bits[0]
        pairs = [first if c == SKIP else c for c in self.candidates]
        self.w_places = [self.w_bits.index(w) for w, _ in pairs]
        self.a_places = [self.a_bits.index(a) for _, a in pairs]
        self.register_buffer('w_index', torch.tensor(self.w_places), persistent=False)
        self.register_buffer('a_index', torch.tensor(self.a_places), persistent=False)

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
        """Probabilities over the candidates (m,); they sum to 1."""
        return self._relax(self.logits, self.temperature)

    def mixture(self) -> Tensor:
        """Coefficients (m,) that the layers mix their candidates with."""
        return self.probs()

    def prune(self, mixture: Sequence[float]) -> None:
        """Drops the candidates with too small coefficients, until the next call.

        Those of a block that may be skipped are its share of what is not skipped.
        """
        shares = {j: p for j, p in enumerate(mixture) if j != self.skip}
        least = self.drop * sum(shares.values())
        kept = [j for j, p in shares.items() if p >= least]
        self._kept = kept if len(kept) < len(shares) else None

    def kept(self) -> list[int] | None:
        """The candidates that mixing 'outputs' computes; None: all of them."""
        return self._kept if self.training else None

    def state(self) -> list[Tensor]:
        """What ``mixture`` is computed from."""
        return [self.logits, *self._buffers.values()]

    def stamp(self, sampled: bool) -> tuple:
        """Another one whenever the mixture, or the path, may be another."""
        path = self.choice if sampled else None
        said = [(t.data_ptr(), t._version) for t in self.state()]
        return path, self.training, self.logits.requires_grad, self.epoch, *said

    def marginals(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """p(w) over ``w_bits`` and p(a) over ``a_bits``, from p over the candidates."""
        w = probs.new_zeros(len(self.w_bits)).index_add(0, self.w_index, probs)
        a = probs.new_zeros(len(self.a_bits)).index_add(0, self.a_index, probs)
        return w, a

    def path(self) -> Tensor:
        """One-hot of the sampled path (m,), straight-through to ``probs``."""
        probs = self.probs()
        hard = torch.zeros_like(probs)
        hard[self.choice] = 1
        return hard + probs - probs.detach() if probs.requires_grad else hard

    def draw(self, generator: torch.Generator) -> None:
        """Takes the random numbers of one step from ``generator``, a CPU's."""


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

    Attributes:
        epoch: Epochs of the search so far, a float that the search sets.
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
