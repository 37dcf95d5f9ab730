"""What a model costs, layer by layer."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from mmmpq.costs.cost import BOPs, WeightBytes, total_cost
from mmmpq.costs.hardware import Hardware
from mmmpq.costs.left_float import float_note, float_share
from mmmpq.costs.profile import LayerProfile, profile
from mmmpq.policy import FLOAT, Precision
from mmmpq.units import human

Row = dict[str, Any]


class Printed:
    """What is shown as its ``table()``, by rich's consoles and by ``print``."""

    def table(self, title: str = '') -> Table:
        raise NotImplementedError

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        console = Console(width=140, markup=False)
        with console.capture() as text:
            console.print(self.table())
        return text.get()


@dataclass
class Bill(Printed):
    """The costs of a model; printed, a table.

    Args:
        layers: Of each layer ``name, type, macs, bops, weight_bytes, w_bits, a_bits``;
            one that is to be searched is shown at its largest candidate.
        total: ``macs, bops, weight_bytes`` of all of them.
        min, max: The same of the cheapest and of the dearest choice of candidates,
            cost by cost.
        float_share: Shares of ``bops`` and ``weights`` of the float net that are of
            layers which stay float; empty if all are.
    """

    layers: list[Row]
    total: Row
    min: Row
    max: Row
    float_share: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if v or k != 'float_share'}

    def table(self, title: str = '') -> Table:
        table = Table(title=title or None)
        table.add_column('layer', overflow='fold')
        for name in ('type', 'W', 'A', 'MACs', 'BOPs', 'weights'):
            table.add_column(name, justify='left' if name == 'type' else 'right')
        for row in self.layers:
            bits = (str(row['w_bits']), str(row['a_bits']))
            table.add_row(row['name'], row['type'], *bits, *_numbers(row))
        table.add_section()
        for name in ('total', 'min', 'max'):
            table.add_row(name, '', '', '', *_numbers(getattr(self, name)))
        table.caption = float_note(self.float_share) or None
        return table


def cost(
    model: nn.Module,
    input_shape: Sequence[int] | None = None,
    proposals: int | None = None,
    hardware: Hardware | None = None,
) -> Bill:
    """What ``model`` costs at a reference input: float, quantized, or a supernet.

    Args:
        model: As of :func:`profile`.
        input_shape: (C, H, W); default: :func:`.profile.reference_input_shape`.
        proposals: Reference number of RoIs per image.
        hardware: Leaves out the candidates that it lacks.

    Raises:
        ValueError: The model cannot run on such an input, or the hardware has none of
            the candidates of a layer.

    Examples:
        >>> import torchvision
        >>> cost(torchvision.models.resnet18(), (3, 224, 224)).total['macs']
        1814073344
    """
    profiles = profile(model, input_shape, proposals)
    return bill_of(profiles, layer_choices(model, profiles, hardware))


def layer_choices(
    model: nn.Module,
    profiles: Sequence[LayerProfile],
    hardware: Hardware | None = None,
) -> dict[str, tuple[Precision, ...]]:
    """The precisions that every quantized layer may take, in a dict by name.

    Layers of one group keep only what the hardware allows for all of them.
    """
    modules = dict(model.named_modules())
    groups = {}
    for layer in profiles:
        module = modules[layer.name]
        candidates = getattr(module, 'candidates', None)
        fixed = getattr(module, 'precision', None)
        if candidates is not None:
            groups.setdefault(module.relaxation, (candidates, []))[1].append(layer)
        elif fixed is not None and fixed != FLOAT:
            groups[layer.name] = ((fixed,), [layer])
    choices = {}
    for candidates, layers in groups.values():
        for layer in layers if hardware else ():
            try:
                candidates = hardware.restrict(layer.type, candidates)
            except ValueError as error:
                raise ValueError(f'layer {layer.name!r}: {error}') from error
        choices.update({layer.name: tuple(candidates) for layer in layers})
    return choices


def bill_of(
    profiles: Sequence[LayerProfile], choices: dict[str, tuple[Precision, ...]]
) -> Bill:
    """The costs of layers, each of which may take some precisions."""
    bops, weight_bytes = BOPs(), WeightBytes()
    shown = {
        name: max(c, key=lambda p: (p[0] * p[1], p)) for name, c in choices.items()
    }

    def total(pick):
        def of(cost):
            chosen = {
                layer.name: pick(choices[layer.name], key=lambda p: cost(layer, p))
                for layer in profiles
                if layer.name in choices
            }
            return total_cost(cost, profiles, chosen)

        return dict(macs=macs, bops=of(bops), weight_bytes=of(weight_bytes))

    macs = sum(layer.macs for layer in profiles)
    layers = []
    for layer in profiles:
        precision = shown.get(layer.name, FLOAT)
        layers.append(
            dict(
                name=layer.name,
                type=layer.type,
                macs=layer.macs,
                bops=bops(layer, precision),
                weight_bytes=weight_bytes(layer, precision),
                w_bits=precision.w_bits,
                a_bits=precision.a_bits,
            )
        )
    return Bill(
        layers=layers,
        total=dict(
            macs=macs,
            bops=total_cost(bops, profiles, shown),
            weight_bytes=total_cost(weight_bytes, profiles, shown),
        ),
        min=total(min),
        max=total(max),
        float_share=float_share(profiles, choices) if choices else {},
    )


def _numbers(row: Row) -> tuple[str, str, str]:
    return (
        human(row['macs'], 'MACs'),
        human(row['bops'], 'BOPs'),
        human(row['weight_bytes'], 'B'),
    )
