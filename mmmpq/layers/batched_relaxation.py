"""The relaxations of all groups of a search, computed at once."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmpq.layers.handed import Handed
from mmmpq.layers.mixing import mixing_of
from mmmpq.layers.probs import Probs
from mmmpq.layers.relaxation import Relaxation
from mmmpq.layers.shares import Shares, without_skip
from mmmpq.layers.softmax import GumbelSoftmax, Softmax, gumbel
from mmmpq.quantizers.base import constant
from mmmpq.transfer import send


class BatchedRelaxation:
    """:class:`Softmax` and :class:`GumbelSoftmax` of G groups in a few operations.

    Candidate j of group g has z_gj = θ_gj, or with factorised logits θ_gw + θ_ga, whose
    softmax is the product of the two; p_g = softmax_j(z_gj / T_g). Rows are padded with
    p = 0 to M, the largest number of candidates. L logits and N candidates in all.

    Args:
        relaxations: Of the groups, for which :meth:`accepts` holds.
        mixings: Names of their layers' mixings.
    """

    @staticmethod
    def accepts(relaxations: Sequence[Relaxation]) -> bool:
        """Whether all are of the two types: a subclass may compute what it likes."""
        return all(type(r) in (Softmax, GumbelSoftmax) for r in relaxations)

    def __init__(self, relaxations: Sequence[Softmax], mixings: set[str]) -> None:
        self.relaxations = list(relaxations)
        self.mixings = [mixing_of(name) for name in mixings]
        self.sizes = [len(r.candidates) for r in self.relaxations]
        self.logit_sizes = [r.logits.numel() for r in self.relaxations]
        self._gumbel = [r for r in self.relaxations if isinstance(r, GumbelSoftmax)]
        self._indices: dict[torch.device, _Indices] = {}

    def theta(self) -> Tensor:
        """θ, the logits of all groups (L,), with their gradient."""
        return torch.cat([r.logits for r in self.relaxations])

    def probs(self, theta: Tensor) -> Tensor:
        """Probabilities of the candidates: (..., L) -> (..., G, M)."""
        return self._softmax(theta, [_temperature(r, False) for r in self.relaxations])

    def mixture(self, theta: Tensor, noise: Sequence[Tensor] | None = None) -> Tensor:
        """Coefficients that the candidates are mixed with: (L,) -> (G, M).

        Args:
            theta: θ.
            noise: Of each :class:`GumbelSoftmax`; default: what it holds.
        """
        if not any(r.training for r in self._gumbel):
            return self.probs(theta)
        drawn = iter([r.noise for r in self._gumbel] if noise is None else noise)
        parts = []
        for r, size in zip(self.relaxations, self.logit_sizes, strict=True):
            part = next(drawn) if isinstance(r, GumbelSoftmax) else None
            noisy = part is not None and r.training
            parts.append(part if noisy else constant([0.0] * size, theta))
        temperatures = [_temperature(r, True) for r in self.relaxations]
        return self._softmax(theta + torch.cat(parts), temperatures)

    def packed(self, padded: Tensor) -> Tensor:
        """Rows without their padding, one after the other: (..., G, M) -> (..., N)."""
        flat, places = padded.flatten(-2), self._on(padded.device).places
        return flat if places is None else flat.index_select(-1, places)

    def each(self, padded: Tensor) -> Probs:
        """The probabilities (G, M), group by group as well."""
        return Probs(self.packed(padded), padded, self.sizes)

    def draw(self, generator: torch.Generator) -> list[Tensor]:
        """Draws the noise of every :class:`GumbelSoftmax`: one copy to the device.

        Returns:
            The noise, as it is on the host.
        """
        if not self._gumbel:
            return []
        sizes = [r.noise.numel() for r in self._gumbel]
        noise = gumbel(sum(sizes), generator)
        sent = send(noise, self._gumbel[0].noise.device)
        torch._foreach_copy_([r.noise for r in self._gumbel], list(sent.split(sizes)))
        return list(noise.split(sizes))

    def hand(self) -> Handed:
        """Hands the layers what they mix with until the logits change or noise is drawn
        anew, or :meth:`Handed.release`."""
        learning = self.relaxations[0].learning
        theta = self.theta().detach().requires_grad_(learning)
        probs = self.probs(theta)
        handed = Handed(self.relaxations, theta, self.each(probs) if learning else None)
        handed.release()
        if not all(m.samples for m in self.mixings):
            mixture = self.mixture(theta) if self._gumbel else probs
            self._hand(handed, mixture, probs, sampled=False)
        choice = [r.choice for r in self.relaxations]
        # A weight step takes the path that was drawn, without any coefficient.
        sampling = learning and any(m.samples for m in self.mixings)
        if sampling and None not in choice:
            hard = torch.zeros(probs.shape)
            hard[range(len(choice)), choice] = 1
            path = send(hard, probs.device) + probs - probs.detach()
            self._hand(handed, path, probs, sampled=True)
        return handed

    def _hand(
        self, handed: Handed, block: Tensor, probs: Tensor, sampled: bool
    ) -> None:
        """Hands out the coefficients ``block`` (G, M), and what follows from them."""
        index = self._on(block.device)
        flat = self.packed(block)
        outputs = [flat]
        if index.others is not None:
            layers = torch.where(
                index.skips, without_skip(block, probs, index.others), block
            )
            flat = self.packed(layers)
            outputs.append(flat)
        cuts = [handed.cut(x).split(self.sizes) for x in outputs]
        marginals: list = [None] * len(self.sizes)
        if any(m.marginals for m in self.mixings):
            widths = [
                handed.cut(flat.new_zeros(sum(n)).index_add(0, i, flat)).split(n)
                for n, i in ((index.w_sizes, index.w), (index.a_sizes, index.a))
            ]
            marginals = list(zip(*widths, strict=True))
        for r, of_block, of_layers, of_widths in zip(
            self.relaxations, cuts[0], cuts[-1], marginals, strict=True
        ):
            stamp = r.stamp(sampled)
            r.handed = {
                **r.handed,
                sampled: Shares(r, of_block, of_layers, of_widths, stamp),
            }

    def _softmax(self, theta: Tensor, temperatures: Sequence[float]) -> Tensor:
        if len(set(temperatures)) > 1:
            each = zip(temperatures, self.logit_sizes, strict=True)
            by = torch.tensor([t for t, size in each for _ in range(size)])
            theta = theta / send(by, theta.device)
        elif temperatures[0] != 1:
            theta = theta / temperatures[0]
        index = self._on(theta.device)
        z = F.pad(theta, (0, 1), value=-math.inf).index_select(-1, index.first)
        if index.second is not None:
            z = z + F.pad(theta, (0, 1)).index_select(-1, index.second)
        shape = len(self.sizes), max(self.sizes)
        return torch.softmax(z.unflatten(-1, shape), -1)

    def _on(self, device: torch.device) -> '_Indices':
        if device not in self._indices:
            self._indices[device] = _indices(self.relaxations, device)
        return self._indices[device]


class _Indices(NamedTuple):
    """Where what is.

    Attributes:
        first, second: Of every candidate in the padded rows, its logits, of which the
            second is that of an activation's width (G · M,); L is none. No ``second``:
            no logits are factorised.
        places: Those of the candidates in the padded rows (N,); None: there is no
            padding.
        w, a: Places of the candidates' widths among those of all groups (N,).
        w_sizes, a_sizes: Numbers of these widths, by group.
        others: 1 for candidates but skip (G, M); None: there is no skip.
        skips: Which groups have skip (G, 1).
    """

    first: Tensor
    second: Tensor | None
    places: Tensor | None
    w: Tensor
    a: Tensor
    w_sizes: list[int]
    a_sizes: list[int]
    others: Tensor | None
    skips: Tensor


def _indices(relaxations: Sequence[Softmax], device: torch.device) -> _Indices:
    most = max(len(r.candidates) for r in relaxations)
    none = sum(r.logits.numel() for r in relaxations)
    first, second, places, w, a, others = [], [], [], [], [], []
    start = w_start = a_start = 0
    for g, r in enumerate(relaxations):
        count, padding = len(r.candidates), most - len(r.candidates)
        if r.factorised:
            first += [start + i for i in r.w_places]
            second += [start + len(r.w_bits) + i for i in r.a_places]
        else:
            first += range(start, start + count)
            second += [none] * count
        first += [none] * padding
        second += [none] * padding
        places += range(g * most, g * most + count)
        w += [w_start + i for i in r.w_places]
        a += [a_start + i for i in r.a_places]
        others.append([float(j != r.skip) for j in range(count)] + [0.0] * padding)
        start += r.logits.numel()
        w_start += len(r.w_bits)
        a_start += len(r.a_bits)
    skips = [[r.skip is not None] for r in relaxations]

    def tensor(values: list, needed: bool = True) -> Tensor | None:
        return torch.tensor(values, device=device) if needed else None

    return _Indices(
        first=tensor(first),
        second=tensor(second, any(r.factorised for r in relaxations)),
        places=tensor(places, len(places) < len(first)),
        w=tensor(w),
        a=tensor(a),
        w_sizes=[len(r.w_bits) for r in relaxations],
        a_sizes=[len(r.a_bits) for r in relaxations],
        others=tensor(others, [True] in skips),
        skips=tensor(skips),
    )


def _temperature(relaxation: Softmax, mixing: bool) -> float:
    """What its logits are divided by, in ``mixture`` or in ``probs``."""
    if not isinstance(relaxation, GumbelSoftmax):
        return relaxation.temperature
    return relaxation.tau if mixing and relaxation.training else 1.0
