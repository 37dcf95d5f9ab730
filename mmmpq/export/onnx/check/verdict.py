"""What a target does with each layer of a net, and why."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from mmmpq.costs.bill import Printed

INTEGERS, FLOAT, REFUSED = 'integers', 'float', 'refused'
DOES = INTEGERS, FLOAT, REFUSED  # from good to bad
COLOURS = {INTEGERS: 'green', FLOAT: 'yellow', REFUSED: 'red'}


@dataclass
class Verdict:
    """What a target does with a layer, or with an operator between layers.

    Attributes:
        name: Of the layer; of an operator, that of its node.
        type: Of the layer or the operator.
        does: One of :data:`DOES`.
        why: Of what is not computed in integers.
        is_layer: Whether it has weights.
        quantized: Whether its weight or its input is; of a net that is to be searched,
            whether that is what the verdict is about.
        nodes: Of a file: the nodes that compute it, several where it is called often.
        precisions: Of a config: those that it is about, such as 'W4A4'.
        bops: Of a config: the layer's share of the float net's.
    """

    name: str
    type: str
    does: str = INTEGERS
    why: list[str] = field(default_factory=list)
    is_layer: bool = True
    quantized: bool = True
    nodes: list[str] = field(default_factory=list)
    precisions: list[str] = field(default_factory=list)
    bops: float | None = None


@dataclass
class Check(Printed):
    """All that a target does with a net; printed, a table.

    Attributes:
        target: Its name.
        verdicts: Of layers, and of operators between them that are not computed in
            integers.
        sources: Where the target's rules are from.
        integer_bops: Of a config: the least and the largest share of the float net's
            BOPs that the choice of candidates brings into integers.
    """

    target: str
    verdicts: list[Verdict]
    sources: tuple[str, ...] = ()
    integer_bops: tuple[float, float] | None = None

    @property
    def ok(self) -> bool:
        """Whether all quantized layers are computed in integers, at least one is, and
        nothing is refused."""
        quantized = [v for v in self.verdicts if v.is_layer and v.quantized]
        return (
            bool(quantized)
            and all(v.does == INTEGERS for v in quantized)
            and all(v.does != REFUSED for v in self.verdicts)
        )

    def to_dict(self) -> dict[str, Any]:
        return dict(asdict(self), ok=self.ok)

    @property
    def summary(self) -> str:
        """One or two sentences."""
        does: dict[str, set[str]] = {}
        for v in self.verdicts:
            if v.is_layer:
                does.setdefault(v.name, set()).add(
                    v.does if v.quantized else 'unquantized'
                )
        kinds = [
            ' or '.join(d for d in (*DOES, 'unquantized') if d in found)
            for found in does.values()
        ]
        told = [f'{kinds.count(kind)} layers {kind}' for kind in dict.fromkeys(kinds)]
        between = sum(not v.is_layer for v in self.verdicts)
        told += [f'{between} operators between them not in integers'] if between else []
        text = f'{self.target}: {", ".join(told) or "no layer at all"}'
        if self.integer_bops is not None:
            low, high = (f'{share:.0%}' for share in self.integer_bops)
            shares = low if low == high else f'{low} to {high}, by the candidates,'
            text += f'; {shares} of the BOPs of the float net run in integers'
        return text

    def table(self, title: str = '') -> Table:
        table = Table(title=title or None, caption=self.summary)
        table.add_column('layer', overflow='fold')
        table.add_column('type')
        config = self.integer_bops is not None
        if config:
            table.add_column('BOPs', justify='right')
            table.add_column('precisions')
        table.add_column(self.target)
        table.add_column('why', overflow='fold')
        for v in self.verdicts:
            row = [v.name, v.type]
            if config:
                row += [f'{v.bops:.1%}', ' '.join(v.precisions)]
            style = COLOURS[v.does] if v.quantized else 'dim'
            table.add_row(*row, Text(v.does, style), '; '.join(v.why))
        return table


def merged(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Nodes of one layer become one verdict, the worst of theirs."""
    found: dict[tuple, Verdict] = {}
    for new in verdicts:
        key = new.name, new.type, new.is_layer
        old = found.setdefault(key, new)
        if old is new:
            continue
        old.does = max(old.does, new.does, key=DOES.index)
        old.why += [text for text in new.why if text not in old.why]
        old.nodes += new.nodes
        old.quantized |= new.quantized
    return list(found.values())
