"""The nets that a supernet holds: precisions of its groups, choices of its modules."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from mmmpq.layers import MixedLayer, QuantLayer, quantized_layers
from mmmpq.policy import SKIP, Policy, Precision, near
from mmmpq.quantizers import per_subnet
from mmmpq.search.space import Group, SearchSpace

# A value for every gene; JSON holds precisions as pairs.
Subnet = dict[str, Any]


@runtime_checkable
class Elastic(Protocol):
    """A module whose architecture is chosen while it is in use.

    It may also have ``idle(values) -> Iterable[str]``: the genes of its own, and the
    submodules by their name in it, that a choice leaves without effect.
    """

    def genes(self) -> dict[str, tuple]:
        """The allowed values of each gene, smallest first."""

    def activate(self, values: dict[str, Any]) -> None:
        """Computes as the subnet of these values, one for each of its genes."""


class SubnetSpace:
    """The subnets of a supernet: a precision for each group with mixing 'sampled', and
    a value for each gene of its elastic modules.

    The gene of a group has the group's name, those of elastic modules the names that
    they give, without a prefix.

    Args:
        model: A supernet, unwrapped.

    Attributes:
        genes: Gene -> allowed values, smallest first.
        groups: The groups by name, in network order.
        common: What all groups can take at once, smallest first, but (0, 0).
        precisions: Of these the matched ones (w_bits = a_bits); all if none is.
        active: The subnet that was activated last.

    Raises:
        ValueError: The model has neither groups nor elastic modules, a group is not
            sampled, or a gene's name is taken twice.
    """

    def __init__(self, model: nn.Module) -> None:
        self._quantized = quantized_layers(model)
        self._quantized_with = getattr(model, 'quantized_with', None)
        mixed = {n: m for n, m in self._quantized.items() if isinstance(m, MixedLayer)}
        for name, layer in mixed.items():
            if not layer.mixer.samples:
                raise ValueError(
                    f'quant.mixing: found {layer.mixing!r} ({name}); a supernet of '
                    "which subnets are taken needs mixing='sampled'"
                )
        self.groups: dict[str, Group] = {}
        if mixed:
            self.groups = {g.name: g for g in SearchSpace(model).groups}
        self.genes: dict[str, tuple] = {
            name: tuple(sorted(group.candidates, key=_size))
            for name, group in self.groups.items()
        }
        self._elastic: dict[str, Elastic] = {}
        for name, module in model.named_modules():
            if isinstance(module, Elastic):
                self._elastic[name] = module
                self._add(name, module.genes())
        if not self.genes:
            raise ValueError(
                "model: has no subnets; give it type='mmmpq.QuantModel' with "
                "quant=dict(candidates=[...], mixing='sampled'), or an elastic backbone"
            )
        shared = [set(group.candidates) - {SKIP} for group in self.groups.values()]
        self.common: tuple[Precision, ...] = ()
        if shared:
            self.common = tuple(sorted(set.intersection(*shared), key=_size))
        matched = tuple(p for p in self.common if p.w_bits == p.a_bits)
        self.precisions: tuple[Precision, ...] = matched or self.common
        self._ranges = per_subnet(model)
        self.active: Subnet | None = None

    def _add(self, name: str, genes: dict[str, tuple]) -> None:
        for gene, values in genes.items():
            if gene in self.genes:
                raise ValueError(
                    f'gene {gene!r} of {name or "the model"}: the name is taken by '
                    'another module or group'
                )
            self.genes[gene] = tuple(values)

    @property
    def architecture(self) -> list[str]:
        """The genes of elastic modules."""
        return [gene for gene in self.genes if gene not in self.groups]

    def smallest(self) -> Subnet:
        return {gene: values[0] for gene, values in self.genes.items()}

    def largest(self, precision: Precision | None = None) -> Subnet:
        """The largest value of every gene; or that, with one precision everywhere."""
        subnet = {gene: values[-1] for gene, values in self.genes.items()}
        return subnet if precision is None else self.uniform(subnet, precision)

    def sample(self, generator: torch.Generator, one_precision: bool = False) -> Subnet:
        """A value for each gene, all equally probable and independent.

        Args:
            generator: A CPU's.
            one_precision: One of ``precisions`` for all groups.
        """
        subnet = {gene: _draw(values, generator) for gene, values in self.genes.items()}
        if one_precision:
            return self.uniform(subnet, self.draw_precision(generator))
        return subnet

    def draw_precision(self, generator: torch.Generator) -> Precision | None:
        """One of ``precisions``; None if there are none, as without groups.

        Raises:
            ValueError: The groups have no candidate in common.
        """
        if not self.groups:
            return None
        if not self.precisions:
            raise ValueError(
                'one_precision: the groups of the supernet have no candidate in common'
            )
        return _draw(self.precisions, generator)

    def draw_alike(
        self, patterns: Sequence[str], generator: torch.Generator
    ) -> dict[str, Any]:
        """A value for the genes of elastic modules whose names match one of
        ``patterns``: the same for all that may take the same ones."""
        drawn: dict[tuple, Any] = {}
        alike: dict[str, Any] = {}
        for gene in self.architecture:
            values = self.genes[gene]
            if any(fnmatchcase(gene, pattern) for pattern in patterns):
                if values not in drawn:
                    drawn[values] = _draw(values, generator)
                alike[gene] = drawn[values]
        return alike

    def uniform(self, subnet: Subnet, precision: Precision | None) -> Subnet:
        """``subnet`` with all groups at ``precision``."""
        if precision is None:
            return subnet
        return {**subnet, **dict.fromkeys(self.groups, Precision(*precision))}

    def check(self, subnet: Subnet) -> None:
        """Raises ValueError if ``subnet`` is none of the space's: gene, found, allowed.

        Pairs in place of precisions, as JSON gives them, are all right.
        """
        for gene in subnet:
            if gene not in self.genes:
                raise ValueError(
                    f'subnet: it has no gene {gene!r}; {near(gene, self.genes)}'
                )
        for gene, values in self.genes.items():
            if gene not in subnet:
                raise ValueError(f'subnet: gene {gene!r} is missing')
            if _hashable(subnet[gene]) not in values:
                raise ValueError(
                    f'subnet: gene {gene!r}: found {_shown(subnet[gene])}; accepted '
                    f'are {", ".join(map(str, values))}'
                )

    def activate(self, subnet: Subnet) -> None:
        """Makes the supernet compute as ``subnet``.

        What was calibrated for another subnet is forgotten: until the statistics of
        this one have been gathered the model cannot be evaluated.
        """
        self.check(subnet)
        for name, group in self.groups.items():
            group.relaxation.choice = group.candidates.index(_hashable(subnet[name]))
        for module in self._elastic.values():
            module.activate({gene: subnet[gene] for gene in module.genes()})
        for quantizer in self._ranges:
            quantizer.forget()
        self.active = self._canonical_values(subnet)

    def idle(self, subnet: Subnet) -> set[str]:
        """The genes of ``subnet`` that have no effect, given the others."""
        idle, unused = self._unused(subnet)
        idle |= {n for n, g in self.groups.items() if set(g.layers) <= unused}
        return idle

    def canonical(self, subnet: Subnet) -> Subnet:
        """The same net with the genes that have no effect at their smallest value."""
        smallest, idle = self.smallest(), self.idle(subnet)
        values = self._canonical_values(subnet)
        return {g: smallest[g] if g in idle else v for g, v in values.items()}

    def layers(self, subnet: Subnet) -> list[str]:
        """Names of the quantized layers that take part, in module order."""
        unused = self._unused(subnet)[1]
        return [name for name in self._quantized if name not in unused]

    def policy(self, subnet: Subnet) -> Policy:
        """Precisions of the layers that take part, and the other genes in its meta."""
        self.check(subnet)
        precisions = {
            name: layer.precision
            for name, layer in self._quantized.items()
            if isinstance(layer, QuantLayer)
        }
        for name, group in self.groups.items():
            value = Precision(*subnet[name])
            precisions.update(dict.fromkeys(group.layers, value))
        meta = {} if self._quantized_with is None else dict(quant=self._quantized_with)
        if self.architecture:
            meta['architecture'] = {g: subnet[g] for g in self.architecture}
        return Policy({name: precisions[name] for name in self.layers(subnet)}, meta)

    def subnet(self, policy: Policy) -> Subnet:
        """The subnet of a policy; genes that have no effect take their smallest value.

        Raises:
            ValueError: It is the policy of no subnet: gene or layer, found, accepted.
        """
        subnet = {**self.smallest(), **policy.meta.get('architecture', {})}
        for name, group in self.groups.items():
            precisions = [policy.layers[n] for n in group.layers if n in policy.layers]
            subnet[name] = precisions[0] if precisions else subnet[name]
        missing = [
            g for g in self.architecture if g not in policy.meta.get('architecture', {})
        ]
        if missing:
            raise ValueError(
                f'policy: meta.architecture has no gene {missing[0]!r}, which the '
                'supernet needs'
            )
        self.check(subnet)
        expected = self.policy(subnet).layers
        policy.check_layers(expected)
        for name, precision in expected.items():
            if policy.layers[name] != precision:
                raise ValueError(
                    f'policy: {name}: found {policy.layers[name]}; accepted is '
                    f'{precision}, which the layer is fixed at or shares with its group'
                )
        return self.canonical(subnet)

    def _canonical_values(self, subnet: Subnet) -> Subnet:
        """In the order and the types of ``genes``."""
        return {
            gene: values[values.index(_hashable(subnet[gene]))]
            for gene, values in self.genes.items()
        }

    def _unused(self, subnet: Subnet) -> tuple[set[str], set[str]]:
        """Genes of elastic modules without effect, and quantized layers left out."""
        genes: set[str] = set()
        prefixes: list[str] = []
        for name, module in self._elastic.items():
            own = module.genes()
            for each in _idle(module, {gene: subnet[gene] for gene in own}):
                if each in own:
                    genes.add(each)
                else:
                    prefixes.append(f'{name}.{each}' if name else each)
        left_out = tuple(f'{p}.' for p in prefixes)
        return genes, {n for n in self._quantized if f'{n}.'.startswith(left_out)}


def _idle(module: Elastic, values: dict[str, Any]) -> Iterator[str]:
    idle: Any = getattr(module, 'idle', None)
    yield from idle(values) if idle is not None else ()


def _size(precision: Precision) -> tuple[int, int]:
    """Ascending in what a product costs; of equal ones fewer bits of weights first."""
    return precision.w_bits * precision.a_bits, precision.w_bits


def _draw(values: Sequence[Any], generator: torch.Generator) -> Any:
    return values[int(torch.randint(len(values), (), generator=generator))]


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, Precision) else repr(value)
