"""What a search chooses from, and what every choice costs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmmpq.costs import Budget, LayerProfile, Reference, profile, total_cost
from mmmpq.layers import MixedLayer, QuantLayer, Softmax, quantized_layers
from mmmpq.policy import FLOAT, Policy, Precision


@dataclass
class Group:
    """Layers that share one choice."""

    name: str
    layers: list[str]
    relaxation: Softmax

    @property
    def candidates(self) -> tuple[Precision, ...]:
        return self.relaxation.candidates


class SearchSpace:
    """The groups of a supernet, in network order, and its fixed layers.

    Args:
        model: A model with ``Mixed*`` layers, unwrapped.

    Raises:
        ValueError: It has none.
    """

    def __init__(self, model: nn.Module) -> None:
        self.fixed: dict[str, Precision] = {}
        self._mixes_outputs = False
        by_relaxation: dict[int, Group] = {}
        for name, layer in quantized_layers(model).items():
            if isinstance(layer, QuantLayer):
                self.fixed[name] = layer.precision
            elif isinstance(layer, MixedLayer):
                shared = layer.relaxation
                group = by_relaxation.setdefault(
                    id(shared), Group(shared.group or name, [], shared)
                )
                group.layers.append(name)
                self._mixes_outputs |= layer.mixing == 'outputs'
        self.groups = list(by_relaxation.values())
        self.order = list(quantized_layers(model))
        self.quantized_with = getattr(model, 'quantized_with', None)
        self._profiles: dict[tuple, list[LayerProfile]] = {}
        if not self.groups:
            raise ValueError(
                'model: has no layer to search; give it '
                "type='mmmpq.QuantModel' with quant=dict(candidates=[...])"
            )

    @property
    def logits(self) -> list[nn.Parameter]:
        return [g.relaxation.logits for g in self.groups]

    def probs(self) -> list[Tensor]:
        """Probabilities of each group's candidates, with the logits' gradient."""
        return [g.relaxation.probs() for g in self.groups]

    def anneal(self, epoch: float) -> None:
        """Tells the relaxations how far the search is, in epochs."""
        for group in self.groups:
            group.relaxation.epoch = epoch

    def draw(self, generator: torch.Generator) -> None:
        """Draws the random numbers of one step: noise, and one path per group.

        The paths are drawn from all groups' probabilities at once: one copy from the
        device a step.
        """
        with torch.no_grad():
            probs = torch.cat(self.probs()).float().cpu()
        for group, p in zip(self.groups, probs.split(self.sizes), strict=True):
            group.relaxation.draw(generator)
            group.relaxation.choice = int(torch.multinomial(p, 1, generator=generator))
        self.prune()

    @torch.no_grad()
    def prune(self) -> None:
        """Leaves out of mixing 'outputs' what has next to no share, once a step."""
        if not self._mixes_outputs:
            return
        mixtures = [g.relaxation.mixture() for g in self.groups]
        flat = torch.cat(mixtures).float().cpu()
        for group, mixture in zip(self.groups, flat.split(self.sizes), strict=True):
            group.relaxation.prune(mixture.tolist())

    def profiles(self, model: nn.Module, reference: Reference) -> list[LayerProfile]:
        """The layers of ``model`` at a reference input; each one is profiled once."""
        key = (reference.input_shape, reference.proposals)
        if key not in self._profiles:
            self._profiles[key] = profile(model, *key)
        return self._profiles[key]

    def prices(self, model: nn.Module, reference: Reference) -> 'Prices':
        """What the candidates cost at a reference input, without any bound."""
        return Prices(self, reference, self.profiles(model, reference))

    @property
    def sizes(self) -> list[int]:
        return [len(g.candidates) for g in self.groups]

    def policy(self, choice: Sequence[int]) -> Policy:
        """The policy in which group g takes candidate ``choice[g]``."""
        layers = dict(self.fixed)
        for group, j in zip(self.groups, choice, strict=True):
            layers.update(dict.fromkeys(group.layers, group.candidates[j]))
        meta = {} if self.quantized_with is None else dict(quant=self.quantized_with)
        return Policy({name: layers[name] for name in self.order}, meta)


class Prices:
    """What each candidate of each group costs at a reference input.

    Args:
        space: The search space.
        reference: The cost and its reference input; a budget is one.
        profiles: The model's layers at that input.

    Attributes:
        values: For each group, the cost of every candidate (m,), float64.
        constant: Cost of fixed and float layers.
        min, max: Cost of the cheapest and of the dearest choice.
    """

    def __init__(
        self,
        space: SearchSpace,
        reference: Reference,
        profiles: Sequence[LayerProfile],
    ) -> None:
        self.reference = reference
        self.profiles = list(profiles)
        by_name = {p.name: p for p in self.profiles}
        self.values = [
            torch.tensor(
                [
                    sum(reference.cost(by_name[n], c) for n in group.layers)
                    for c in group.candidates
                ],
                dtype=torch.float64,
            )
            for group in space.groups
        ]
        searched = {n for group in space.groups for n in group.layers}
        self.searched = [p for p in self.profiles if p.name in searched]
        self.constant = sum(
            reference.cost(p, space.fixed.get(p.name, FLOAT))
            for p in self.profiles
            if p.name not in searched
        )
        self._space = space
        self.min = self.constant + sum(float(v.min()) for v in self.values)
        self.max = self.constant + sum(float(v.max()) for v in self.values)

    @property
    def name(self) -> str:
        return type(self.reference.cost).__name__

    def uniform(self, precision: Precision) -> float:
        """Cost with every searched layer at ``precision``, fixed ones as they are."""
        layers = dict(self._space.fixed)
        for group in self._space.groups:
            layers.update(dict.fromkeys(group.layers, precision))
        return total_cost(self.reference.cost, self.profiles, layers)

    def expected_searched(self, probs: Sequence[Tensor]) -> Tensor:
        """Σ_g Σ_j p_gj B_gj, a float64 scalar with gradient."""
        flat = torch.cat(list(probs)).double()
        return (flat * torch.cat(self.values).to(flat.device)).sum()

    def expected(self, probs: Sequence[Tensor]) -> Tensor:
        """E[B] = Σ_g Σ_j p_gj B_gj + constant, a float64 scalar with gradient."""
        return self.expected_searched(probs) + self.constant

    def of(self, policy: Policy) -> float:
        """Cost of a policy, layer by layer, independent of ``values``."""
        return total_cost(self.reference.cost, self.profiles, policy.layers)


class CostTable(Prices):
    """What each candidate of each group costs under one budget.

    Args:
        space: The search space.
        budget: The budget; a relative one is resolved here.
        profiles: The model's layers at the budget's reference input.

    Attributes:
        limit: Upper bound B_max in the cost's unit.
    """

    def __init__(
        self, space: SearchSpace, budget: Budget, profiles: Sequence[LayerProfile]
    ) -> None:
        super().__init__(space, budget, profiles)
        self.budget = budget
        self.limit = budget.resolve(self.uniform)

    def check(self) -> None:
        """Raises ValueError if no choice of candidates can meet the budget."""
        if self.min > self.limit:
            unit = self.budget.cost.unit
            raise ValueError(
                f'budgets: {self.name} limit {self.budget.limit!r} = '
                f'{self.limit:.6g} {unit} cannot be met: the candidates span '
                f'[{self.min:.6g}, {self.max:.6g}] {unit}'
            )


def cost_tables(
    model: nn.Module, space: SearchSpace, budgets: Sequence[Budget]
) -> list[CostTable]:
    """One table per budget; each distinct reference input is profiled once."""
    return [CostTable(space, b, space.profiles(model, b)) for b in budgets]
