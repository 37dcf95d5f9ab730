"""What a search chooses from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mmmpq.costs import CostAt, LayerProfile, profile
from mmmpq.costs.copies import copies
from mmmpq.costs.feeds import Feed, feeds
from mmmpq.layers import (
    BatchedRelaxation,
    Handed,
    MixedLayer,
    QuantLayer,
    Relaxation,
    padded,
    quantized_layers,
    quantized_part,
)
from mmmpq.policy import Policy, Precision
from mmmpq.transfer import Fetch


@dataclass
class Group:
    """Layers that share one choice."""

    name: str
    layers: list[str]
    relaxation: Relaxation
    copies: list[Relaxation] = field(default_factory=list)  # of a teacher, say

    @property
    def candidates(self) -> tuple[Precision, ...]:
        return self.relaxation.candidates

    def take(self, choice: int | None) -> None:
        """Sets the path that its layers compute whose mixing samples."""
        for relaxation in (self.relaxation, *self.copies):
            relaxation.choice = choice


class SearchSpace:
    """The groups of a supernet, in network order, and its fixed layers.

    Layers of a copy, such as a teacher, follow those that they copy.

    Args:
        model: A model with ``Mixed*`` layers, unwrapped, or with one in it: names are
            relative to the part that was quantized.

    Attributes:
        fixed: Layers that are not searched.
        ends: Searched layers that have a precision of their own in a uniform net.
        batch: All relaxations at once; None where one of them is of a type of its own,
            and each has to be asked for itself.

    Raises:
        ValueError: It has none.
    """

    def __init__(self, model: nn.Module) -> None:
        self.fixed: dict[str, Precision] = {}
        self.ends: dict[str, Precision] = {}
        mixings: set[str] = set()
        self._samples = self._prunes = False
        by_relaxation: dict[int, Group] = {}
        model = quantized_part(model)
        layers = quantized_layers(model)
        self.copies = {c: n for c, n in copies(model).items() if c in layers}
        for name, layer in layers.items():
            if name in self.copies:
                continue
            if isinstance(layer, QuantLayer):
                self.fixed[name] = layer.precision
            elif isinstance(layer, MixedLayer):
                shared = layer.relaxation
                group = by_relaxation.setdefault(
                    id(shared), Group(shared.group or name, [], shared)
                )
                group.layers.append(name)
                if layer.in_uniform is not None:
                    self.ends[name] = layer.in_uniform
                mixings.add(layer.mixing)
                self._samples |= layer.mixer.samples
                self._prunes |= layer.mixer.prunes
        self.groups = list(by_relaxation.values())
        for copy, name in self.copies.items():
            if isinstance(layers[copy], MixedLayer):
                group = by_relaxation[id(layers[name].relaxation)]
                if layers[copy].relaxation not in group.copies:
                    group.copies.append(layers[copy].relaxation)
        self.order = list(layers)
        self.quantized_with = getattr(model, 'quantized_with', None)
        self._profiles: dict[tuple, list[LayerProfile]] = {}
        self._feeds: dict[tuple, list[Feed]] = {}
        if not self.groups:
            raise ValueError(
                'model: has no layer to search; give it '
                "type='mmmpq.QuantModel' with quant=dict(candidates=[...])"
            )
        relaxations = [g.relaxation for g in self.groups]
        self.batch: BatchedRelaxation | None = None
        if BatchedRelaxation.accepts(relaxations):
            self.batch = BatchedRelaxation(relaxations, mixings)
        self._fetched: tuple[list, Fetch] | None = None

    @property
    def logits(self) -> list[nn.Parameter]:
        return [g.relaxation.logits for g in self.groups]

    def probs(self) -> Sequence[Tensor]:
        """Probabilities of each group's candidates, with the logits' gradient."""
        if self.batch is None:
            return [g.relaxation.probs() for g in self.groups]
        return self.batch.each(self.batch.probs(self.batch.theta()))

    def learn(self, on: bool) -> None:
        """Whether gradients reach the logits, and layers take a step of theirs."""
        for group in self.groups:
            group.relaxation.learning = on

    def hand(self, learn: bool = False) -> Handed:
        """Computes what the layers mix with in one step of the logits (``learn``), or
        of the weights, for all groups at once."""
        self.learn(learn)
        return Handed() if self.batch is None else self.batch.hand()

    @torch.no_grad()
    def move(self, theta: Tensor) -> None:
        """Sets the logits of all groups (L,)."""
        parts = theta.split([p.numel() for p in self.logits])
        torch._foreach_copy_(self.logits, list(parts))

    def anneal(self, epoch: float) -> None:
        """Tells the relaxations how far the search is, in epochs."""
        for group in self.groups:
            group.relaxation.epoch = epoch

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Draws the random numbers of one step: noise, and where a mixing samples one
        path per group. Leaves out what has next to no share where one prunes."""
        noise: list[Tensor] = []
        if self.batch is not None:
            noise = self.batch.draw(generator)
        else:
            for group in self.groups:
                group.relaxation.draw(generator)
        if self._samples:
            drawn = torch.multinomial(self._host_probs(), 1, generator=generator)
            for group, (j,) in zip(self.groups, drawn.tolist(), strict=True):
                group.take(j)
        if self._prunes:
            for group, row in zip(
                self.groups, self._host_mixtures(noise).tolist(), strict=True
            ):
                group.relaxation.prune(row[: len(group.candidates)])

    def take(self, choice: Sequence[int]) -> None:
        """Sets the path that layers compute whose mixing samples."""
        for group, j in zip(self.groups, choice, strict=True):
            group.take(j)

    def fetch(self) -> None:
        """Has the logits copied to the host, where the next :meth:`draw` needs them:
        by then they are there."""
        if self.batch is not None and (self._samples or self._prunes):
            with torch.no_grad():
                self._fetched = self._versions(), Fetch(self.batch.theta())

    def _host_logits(self) -> Tensor:
        if self._fetched is None or self._fetched[0] != self._versions():
            self.fetch()
        return self._fetched[1].result()

    def _versions(self) -> list[tuple[int, int]]:
        return [(p.data_ptr(), p._version) for p in self.logits]

    def _host_probs(self) -> Tensor:
        """Probabilities (G, M), padded with zeros."""
        if self.batch is None:
            return padded(self.probs()).float().cpu()
        return self.batch.probs(self._host_logits()).float()

    def _host_mixtures(self, noise: Sequence[Tensor]) -> Tensor:
        """Mixtures (G, M), padded with zeros; of the ``noise`` that the batch drew."""
        if self.batch is None:
            return padded([g.relaxation.mixture() for g in self.groups]).float().cpu()
        return self.batch.mixture(self._host_logits(), noise).float()

    def profiles(self, model: nn.Module, at: CostAt) -> list[LayerProfile]:
        """The layers of ``model`` at a reference input; each one is profiled once."""
        key = (at.input_shape, at.proposals)
        if key not in self._profiles:
            self._profiles[key] = profile(quantized_part(model), *key)
        return self._profiles[key]

    def feeds(self, model: nn.Module, at: CostAt) -> list[Feed]:
        """What layers hand on at a reference input, if the cost asks for it."""
        if not at.cost.pairwise:
            return []
        key = (at.input_shape, at.proposals)
        if key not in self._feeds:
            self._feeds[key] = feeds(quantized_part(model), *key)
        return self._feeds[key]

    @property
    def sizes(self) -> list[int]:
        return [len(g.candidates) for g in self.groups]

    def policy(self, choice: Sequence[int]) -> Policy:
        """The policy in which group g takes candidate ``choice[g]``."""
        layers = dict(self.fixed)
        for group, j in zip(self.groups, choice, strict=True):
            layers.update(dict.fromkeys(group.layers, group.candidates[j]))
        return self._policy(layers)

    def uniform(self, precision: Precision, ends: bool = False) -> Policy:
        """The policy of one precision, which need not be a candidate.

        Args:
            precision: Of all searched layers.
            ends: Whether also of the :attr:`ends`, which have their own otherwise.
        """
        layers = dict(self.fixed)
        for group in self.groups:
            layers.update(dict.fromkeys(group.layers, precision))
        return self._policy(layers if ends else layers | self.ends)

    def _policy(self, layers: dict[str, Precision]) -> Policy:
        layers.update({copy: layers[name] for copy, name in self.copies.items()})
        meta = {} if self.quantized_with is None else dict(quant=self.quantized_with)
        return Policy({name: layers[name] for name in self.order}, meta)
