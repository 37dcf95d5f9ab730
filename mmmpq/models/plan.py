"""What of a model is to be quantized, and how far its precisions are settled."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import nn

from mmmpq.costs.copies import copies
from mmmpq.layers import float_twin
from mmmpq.models.reached import look_through, passed_by, report_float, shared_weights
from mmmpq.models.selection import (
    candidates_of,
    default_fixed,
    expand,
    group_layers,
    parse_fixed,
    stem_of,
)
from mmmpq.policy import Precision

SAFE = Precision(8, 8)
# Of a search that names none: more of them where few bits are, as there they differ.
CANDIDATES = tuple(
    Precision(*bits)
    for bits in (
        *((2, 2), (2, 3), (3, 2), (3, 3), (3, 4), (4, 3), (4, 4), (4, 6), (6, 4)),
        *((6, 6), (8, 8)),
    )
)
# What the ends may take where they are searched: the image has 8 bits, and no layer
# averages what is wrong with a box. All pairs, as factorised relaxations want.
STEM = tuple(Precision(w, 8) for w in (4, 6, 8))
PREDICTION = tuple(Precision(w, a) for w in (4, 6, 8) for a in (4, 6, 8))


class Plan(NamedTuple):
    """What of a model is quantized, and how far that is settled.

    Attributes:
        modules: The model's modules by name.
        names: The layers to be quantized.
        excluded: Those that stay float although they could be.
        pinned: Those of a fixed precision.
        searchable: The others, but for layers that follow one of them.
        ends: The stem and the final prediction layers.
        alone: Those with candidates of their own; each chooses for itself.
        candidates: Of every layer.
        tied: Layers and the first one that has the same weight.
        copied: Layers of a part that copies another one (a teacher), and theirs.
    """

    modules: dict[str, nn.Module]
    names: list[str]
    excluded: list[str]
    pinned: dict[str, Precision]
    searchable: list[str]
    ends: list[str]
    alone: set[str]
    candidates: dict[str, tuple[Precision, ...]]
    tied: dict[str, str]
    copied: dict[str, str]

    def grouped(self, model: nn.Module, groups: Any) -> dict[str, list[str]]:
        """The searchable layers that choose together, in network order."""
        others = [n for n in self.searchable if n not in self.alone]
        layers_of = group_layers(model, others, groups)
        layers_of |= {n: [n] for n in self.searchable if n in self.alone}
        place = {n: i for i, n in enumerate(self.searchable)}
        return dict(sorted(layers_of.items(), key=lambda group: place[group[1][0]]))

    def followed_by(self, members: Sequence[str]) -> Iterator[list[str]]:
        """Layers of a group with those of their weights; and their copies, if any."""
        own = [
            n for n in self.names
            if n not in self.copied and self.tied.get(n, n) in members
        ]  # fmt: skip
        yield own
        if mirrored := [c for c, n in self.copied.items() if n in own]:
            yield mirrored


def plan(
    model: nn.Module,
    exclude: str | Iterable[str],
    fixed: dict[str, Any],
    candidates: Any,
    ends: str | None,
    look: bool,
) -> Plan:
    """Looks through the layers of a float model, and at a forward of it.

    Args:
        model: As of :func:`mmmpq.models.quantize`, as for the next three.
        ends: As there; None: there is no search, and they have 8/8.
        look: Whether a forward tells which layers it calls and which are the last.
    """
    modules = dict(model.named_modules())
    names = [n for n, m in modules.items() if float_twin(m)]
    exclude = [exclude] if isinstance(exclude, str) else list(exclude)
    out = set(expand(exclude, names, 'quant.exclude'))
    report_float(modules, names)
    copied = {c: n for c, n in copies(model).items() if {c, n} <= set(names)}
    flow = look_through(model) if look else None
    out.update([] if flow is None else passed_by(names, flow, copied))
    out.update(c for c, n in copied.items() if n in out)
    tied, shared = shared_weights(model, [n for n in names if n not in out])
    out.update(shared)
    excluded = [n for n in names if n in out]
    names = [n for n in names if n not in out]
    copied = {c: n for c, n in copied.items() if c not in out}
    together = _together(names, {**copied, **tied})
    safe = default_fixed(model, names, flow)
    choices, named = (
        ({}, set()) if candidates is None else candidates_of(candidates, names)
    )
    pinned: dict[str, Precision | None] = {n: SAFE for s in safe for n in together[s]}
    settled = parse_fixed(fixed, names)
    free = set() if ends is None else named & set(pinned)
    alone: set[str] = set()
    if ends == 'searched':
        stem = stem_of(model)
        alone = {n for n in pinned if n not in named and n not in settled}
        choices.update({n: STEM if n == stem else PREDICTION for n in alone})
    pinned.update(dict.fromkeys(free | alone))
    for name, precision in settled.items():
        pinned.update(dict.fromkeys(together[name], precision))
    pinned = {n: p for n, p in pinned.items() if p is not None}
    searchable = [n for n in names if not {n} & {*pinned, *copied, *tied}]
    last = [n for s in safe for n in together[s]]
    return Plan(
        *(modules, names, excluded, pinned, searchable, last, alone),
        *(choices, tied, copied),
    )


def _together(names: Sequence[str], follows: dict[str, str]) -> dict[str, list[str]]:
    """The layers that have the precision of each layer, itself included."""
    groups = {n: [n] for n in names}
    for one, other in follows.items():
        if groups[one] is not groups[other]:
            both = groups[other] + groups[one]
            groups.update(dict.fromkeys(both, both))
    return groups
