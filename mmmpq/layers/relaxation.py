"""Relaxations: from the logits of a group to probabilities over its candidates."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmmpq.policy import SKIP, Precision


class Relaxation(nn.Module):
    """The logits of a group, which its layers share, and what they make of them.

    A subclass gives ``probs`` and, where the layers mix with something else,
    ``mixture``. Logits that are not one per candidate are set by :meth:`set_logits` and
    have a :meth:`tilt` of their own. A biased start is a tilt from logits of zero.

    The logits are parameters without ``requires_grad``: the optimizer of the weights
    and DDP pass them by, and the search alone turns their gradient on.

    Args:
        candidates: The m candidate precisions.
        group: Name of the group, for logs and reports.
        init: Value that all logits start from.
        drop: Coefficient below which, at the start of an iteration, mixing 'outputs'
            leaves a candidate out of its computation (not out of the choice), so that a
            search gets cheaper as it converges. With ε, at most (m - 1) · drop, the sum
            of what is left out, the output moves by at most 2 ε times the largest
            candidate's.

    Attributes:
        epoch: Epochs of the search so far, which it sets before every iteration.
        choice: The path that mixing 'sampled' takes; None: there is none.
        handed: What the layers mix with in a step, of the path or not.
        owned: Whether a layer holds it as its submodule.
        skip: Place of (0, 0) among the candidates, or None.
        w_bits, a_bits: The widths among the candidates, ascending.
        w_places, a_places: Of each candidate's widths among these. Skip has no width:
            the layers never see its probability, so any place will do.
    """

    epoch: float = 0.0

    def __init__(
        self,
        candidates: Sequence[Precision],
        group: str = '',
        init: float = 0.0,
        drop: float = 1e-3,
    ) -> None:
        super().__init__()
        if not 0 <= drop < 1 / len(candidates):
            raise ValueError(
                f'relaxation.drop: found {drop!r}; accepted are numbers from 0 to '
                f'below 1 / {len(candidates)}, the share of each candidate'
            )
        self.candidates: tuple[Precision, ...] = tuple(candidates)
        self.group = group
        self.drop = drop
        self.choice: int | None = None
        self.handed: dict[bool, Any] = {}
        self._active: list[int] | None = None
        self.owned = False
        self.skip = self.candidates.index(SKIP) if SKIP in self.candidates else None
        self.w_bits = tuple(sorted({c.w_bits for c in self.candidates} - {0}))
        self.a_bits = tuple(sorted({c.a_bits for c in self.candidates} - {0}))
        self.set_logits(len(self.candidates), init)
        first = self.w_bits[0], self.a_bits[0]
        pairs = [first if c == SKIP else c for c in self.candidates]
        self.w_places = [self.w_bits.index(w) for w, _ in pairs]
        self.a_places = [self.a_bits.index(a) for _, a in pairs]
        self.register_buffer('w_index', torch.tensor(self.w_places), persistent=False)
        self.register_buffer('a_index', torch.tensor(self.a_places), persistent=False)

    def set_logits(self, count: int, init: float = 0.0) -> None:
        """Makes the logits (count,)."""
        values = torch.full((count,), float(init))
        self.logits = nn.Parameter(values, requires_grad=False)

    @property
    def learning(self) -> bool:
        """Whether the logits learn from what is computed now: then layers mix in a way
        that gradients go through, and nobody else turns that of the logits on."""
        return self.logits.requires_grad

    @learning.setter
    def learning(self, on: bool) -> None:
        self.logits.requires_grad_(on)

    def require_grid(self, key: str) -> None:
        """Raises ValueError, about ``key``, unless every pair of the widths is a
        candidate, and skip is none."""
        full = len(self.w_bits) * len(self.a_bits) == len(self.candidates)
        if not full or self.skip is not None:
            raise ValueError(
                f'{key}: needs every pair of the widths '
                f'{list(self.w_bits)} and {list(self.a_bits)} among the candidates; '
                f'found {", ".join(map(str, self.candidates))}'
            )

    def probs(self) -> Tensor:
        """Probabilities over the candidates (m,); they sum to 1."""
        raise NotImplementedError

    def mixture(self) -> Tensor:
        """Coefficients (m,) that the layers mix their candidates with."""
        return self.probs()

    def tilt(self, costs: Tensor) -> Tensor:
        """The direction B_θ in the logits (L,) of costs B of the candidates (m,).

        With θ - c · B_θ, c ≥ 0, the expected cost falls to that of the cheapest
        candidate as c grows. By it a search starts, and stays, within its budgets.
        """
        return costs

    def prune(self, mixture: Sequence[float]) -> None:
        """Drops the candidates with too small coefficients, until the next call.

        Those of a block that may be skipped are its share of what is not skipped.
        """
        shares = {j: p for j, p in enumerate(mixture) if j != self.skip}
        least = self.drop * sum(shares.values())
        active = [j for j, p in shares.items() if p >= least]
        self._active = active if len(active) < len(shares) else None

    def active(self) -> list[int] | None:
        """The candidates that mixing 'outputs' computes; None: all of them."""
        return self._active if self.training else None

    def state(self) -> list[Tensor]:
        """What ``mixture`` is computed from."""
        return [self.logits, *self._buffers.values()]

    def stamp(self, sampled: bool) -> tuple:
        """Another one whenever the mixture, or the path, may be another."""
        path = self.choice if sampled else None
        versions = [(t.data_ptr(), t._version) for t in self.state()]
        return path, self.training, self.learning, self.epoch, *versions

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
