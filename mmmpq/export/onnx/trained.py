"""Grids of tensors between layers that a net was trained with."""

from collections.abc import Mapping, Sequence

from torch import nn

from mmmpq.export.integers import levels_at
from mmmpq.export.onnx.levels import store_levels
from mmmpq.export.onnx.target import Target
from mmmpq.export.onnx.wires import Grid
from mmmpq.layers.island import BITS
from mmmpq.models.islands import trained_target


def target_of(model: nn.Module, name: str | None) -> Target | None:
    """The runtime of a file: that of ``name``, else the one that ``model`` was trained
    for, if it was.

    Raises:
        ValueError: There is none of that name, or the model was trained for another.
    """
    trained = trained_target(model)
    if trained and name not in (None, trained):
        Target.load(name)
        raise ValueError(
            f'target: found {name!r} for a net that was trained with quant.target='
            f'{trained!r}; accepted is that one'
        )
    name = name or trained
    return Target.load(name) if name else None


def trained_grids(
    model: nn.Module, marks: Mapping[str, Sequence[str]], target: Target
) -> dict[str, tuple[str, Grid]]:
    """By tensor of a graph, the island of ``model`` that it is of, and its grid.

    Args:
        model: A net of fixed precision.
        marks: As :func:`.graph.traced` gives them.
        target: What it was trained for.

    Raises:
        ValueError: One has no range yet; it is named.
    """
    signed = None if target.type == 'by sign' else target.type == 'int8'
    grids = {}
    for key, island in getattr(model, 'islands', {}).items():
        try:
            scale, zero, low, high = levels_at(island.a_quantizer, BITS)
        except ValueError as error:
            raise ValueError(f'islands.{key}: {error}') from error
        at = store_levels(8, low, high, zero, signed)
        grids[key] = Grid(float(scale), int(at.point), at.type)
    return {tensor: (keys[0], grids[keys[0]]) for tensor, keys in marks.items()}
