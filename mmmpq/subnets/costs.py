"""What many subnets cost at once."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from torch import nn

from mmmpq.costs import (
    Budget,
    CostAt,
    LayerProfile,
    profile,
    reference_input_shape,
    total_cost,
)
from mmmpq.costs.feeds import Feed, feeds
from mmmpq.policy import FLOAT, Precision
from mmmpq.search.solver import solve
from mmmpq.search.terms import Options, PairCosts, Terms, pair_costs
from mmmpq.subnets.code import Codes, GeneCode
from mmmpq.subnets.space import Subnet, SubnetSpace

RESOLUTION = 'resolution'  # the gene of the input's size


class SubnetCosts:
    """Costs (n, k) of subnets given as genes (n, G), under k costs.

    Of a supernet that is elastic in bits alone every layer is profiled once. An elastic
    backbone says what the layers of a subnet compute and hold: ``layer_macs(values,
    resolution)`` and ``layer_weights(values)``, by their names in it.

    Args:
        model: The supernet.
        space: Its subnets.
        counted: The costs and their reference inputs. With a gene 'resolution' the
            net is counted at that resolution, whatever the reference input.

    Raises:
        ValueError: A cost of an elastic backbone that needs more of its layers.
    """

    def __init__(
        self, model: nn.Module, space: SubnetSpace, counted: Sequence[CostAt]
    ) -> None:
        self._model, self.space, self.code = model, space, GeneCode(space)
        self.counted = list(counted)
        self._elastic = {
            name: module
            for name, module in model.named_modules()
            if hasattr(module, 'layer_macs')
        }
        for at in counted:
            if self._elastic and not set(at.cost.needs) <= {'macs', 'weights'}:
                raise ValueError(
                    f'{at.name}: accepted for an elastic architecture are costs that '
                    'need MACs and weights alone, such as BOPs and WeightBytes'
                )
        self._profiles, self._feeds = self._largest_layers()
        self._elastic_names = set(self._elastic_layers(space.largest(), 1))
        self._fixed = space.policy(space.largest()).layers
        self._group_of = {
            layer: g
            for g, name in enumerate(self.code.names)
            if name in space.groups
            for layer in space.groups[name].layers
        }
        self._pair_costs = [self._pairs_of(i) for i in range(len(self.counted))]
        self._rows: dict[tuple, np.ndarray] = {}
        self._table = lru_cache(maxsize=4096)(self._table_of)

    def __call__(self, genes: Codes) -> np.ndarray:
        distinct: dict[tuple, int] = {}
        at = [
            distinct.setdefault(tuple(row), len(distinct))
            for row in genes[:, self.code.architecture].tolist()
        ]
        tables, constants = zip(*map(self._table, distinct), strict=True)
        total = np.stack(constants)[at]
        for g in range(genes.shape[1]):
            column = np.stack([table[:, g] for table in tables])
            total += column[at, :, genes[:, g]]
        for i, costs in enumerate(self._pair_costs):
            for (g, h), together in costs.pairs.items():
                total[:, i] += together[genes[:, g], genes[:, h]]
        return total

    def of(self, subnet: Subnet) -> list[float]:
        """The k costs of one subnet, layer by layer, independent of the tables."""
        layers = self.space.policy(subnet).layers
        return [
            total_cost(at.cost, self.layers(subnet, i), layers, self._feeds[i])
            for i, at in enumerate(self.counted)
        ]

    def layers(self, subnet: Subnet, i: int = 0) -> list[LayerProfile]:
        """The layers of a subnet at the reference input of the i-th cost."""
        sizes = self._elastic_layers(subnet, self.shape(subnet, i)[1])
        layers = []
        for name, layer in self._profiles[i].items():
            if name in sizes:
                macs, weights = sizes[name]
                layers.append(replace(layer, macs=macs, weights=weights))
            elif name not in self._elastic_names:
                layers.append(layer)
        return layers

    def shape(self, subnet: Subnet, i: int = 0) -> tuple[int, int, int]:
        """(C, H, W) at which the i-th cost of a subnet is counted."""
        shape = self.counted[i].input_shape
        shape = shape or reference_input_shape(self._model)
        size = subnet.get(RESOLUTION)
        return shape if size is None else (shape[0], size, size)

    def in_float(self, i: int) -> float:
        """The i-th cost of the largest net in float."""
        layers = self.layers(self.space.largest(), i)
        return total_cost(self.counted[i].cost, layers, {}, self._feeds[i])

    def span(self, i: int) -> tuple[float, float]:
        """Least and largest value of the i-th cost."""
        if self._pair_costs[i].pairs:
            terms, constant = self.linear()
            ends = [solve(terms[i].scaled(sign), [], []) for sign in (-1, 1)]
            return tuple(float(constant[i] + terms[i].of(end)) for end in ends)
        ends = []
        for subnet, best in (
            (self.space.smallest(), np.min),
            (self.space.largest(), np.max),
        ):
            row = self.code.of([subnet])[0, self.code.architecture]
            table, constant = self._table(tuple(row.tolist()))
            parts = [
                best(table[i, g, :m]) for g, m in enumerate(self.code.sizes.tolist())
            ]
            ends.append(float(constant[i] + sum(parts)))
        return ends[0], ends[1]

    def limit(self, budget: Budget, i: int) -> float:
        """The bound of a budget on the i-th cost, in the cost's unit.

        A uniform precision is that of the largest net.

        Raises:
            ValueError: It is below the smallest net; both are named.
        """

        def uniform(precision: Precision) -> float:
            layers = {
                name: precision if name in self._group_of else fixed
                for name, fixed in self._fixed.items()
            }
            largest = self.layers(self.space.largest(), i)
            return total_cost(budget.cost, largest, layers, self._feeds[i])

        limit = budget.resolve(uniform)
        budget.check(limit, *self.span(i), 'subnets')
        return limit

    def linear(self) -> tuple[list[Terms], np.ndarray]:
        """For each cost, for each gene, that of its values (m,); and constants (k,).

        Raises:
            ValueError: The architecture is elastic: costs are no sum over genes.
        """
        if self.code.architecture:
            raise ValueError('costs of an elastic architecture are no sum over genes')
        table, constant = self._table(())
        sizes = self.code.sizes.tolist()
        terms = [
            Terms([t[g, :m] for g, m in enumerate(sizes)], costs.pairs)
            for t, costs in zip(table, self._pair_costs, strict=True)
        ]
        return terms, constant

    def _table_of(self, architecture: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Costs (k, G, m) of every value of every gene, and of the rest (k,)."""
        row = np.zeros((1, len(self.code.names)), np.int64)
        row[0, self.code.architecture] = architecture
        subnet = self.code.subnets(row)[0]
        count = len(self.counted)
        table = np.zeros((count, len(self.code.names), self.code.sizes.max()))
        constant = np.zeros(count)
        sizes: dict[int, dict] = {}
        for i in range(count):
            side = self.shape(subnet, i)[1]
            if side not in sizes:
                sizes[side] = self._elastic_layers(subnet, side)
            for name, layer in self._profiles[i].items():
                size = layer.macs, layer.weights
                if name in self._elastic_names:
                    size = sizes[side].get(name)
                if size is None:
                    continue
                costs, g = self._row(i, name, *size), self._group_of.get(name)
                if g is None:
                    constant[i] += costs[0]
                else:
                    table[i, g, : len(costs)] += costs
            pairs = self._pair_costs[i]
            constant[i] += pairs.constant
            for g, costs in pairs.single.items():
                table[i, g, : len(costs)] += costs
        return table, constant

    def _pairs_of(self, i: int) -> PairCosts:
        """What the i-th cost says between the layers; of bits alone."""
        options: Options = {
            name: (None, (self._fixed.get(name, FLOAT),)) for name in self._profiles[i]
        }
        for layer, g in self._group_of.items():
            options[layer] = g, self.space.genes[self.code.names[g]]
        profiles = self._profiles[i].values()
        return pair_costs(self.counted[i].cost, self._feeds[i], profiles, options)

    def _row(self, i: int, name: str, macs: int, weights: int) -> np.ndarray:
        """The i-th cost of a layer at each value that it may take."""
        key = i, name, macs, weights
        if key not in self._rows:
            layer = replace(self._profiles[i][name], macs=macs, weights=weights)
            values = (self._fixed.get(name, FLOAT),)
            if name in self._group_of:
                values = self.space.genes[self.code.names[self._group_of[name]]]
            cost = self.counted[i].cost
            self._rows[key] = np.array([float(cost(layer, v)) for v in values])
        return self._rows[key]

    def _elastic_layers(
        self, subnet: Subnet, resolution: int
    ) -> dict[str, tuple[int, int]]:
        """MACs and weights of the elastic layers in use, by name in the model."""
        sizes = {}
        for name, module in self._elastic.items():
            values = {gene: subnet[gene] for gene in module.genes()}
            weights = module.layer_weights(values)
            for layer, macs in module.layer_macs(values, resolution).items():
                sizes[f'{name}.{layer}' if name else layer] = macs, weights[layer]
        return sizes

    def _largest_layers(self) -> tuple[list[dict[str, LayerProfile]], list[list[Feed]]]:
        """The layers of the largest net under each cost, by name, and what they hand on
        where the cost asks for it."""
        active, largest = self.space.active, self.space.largest()
        self.space.activate(largest)
        keys = [
            (self.shape(largest, i), reference.proposals)
            for i, reference in enumerate(self.counted)
        ]
        profiles = {
            key: {layer.name: layer for layer in profile(self._model, *key)}
            for key in dict.fromkeys(keys)
        }
        handed = [
            feeds(self._model, *key) if at.cost.pairwise else []
            for at, key in zip(self.counted, keys, strict=True)
        ]
        if active is not None:
            self.space.activate(active)
        return [profiles[key] for key in keys], handed
