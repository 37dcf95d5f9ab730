"""Latency from a table that the user has measured."""

import math
from pathlib import Path
from typing import Any

from mmmpq.costs.cost import Cost
from mmmpq.costs.feeds import Feed
from mmmpq.costs.layer_types import LAYER_TYPES
from mmmpq.costs.profile import LayerProfile
from mmmpq.fileio import strict_json
from mmmpq.policy import SKIP, Precision, near
from mmmpq.registry import COSTS
from mmmpq.units import LADDERS

_SHAPE = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'groups')
_PLACE = ('type', *_SHAPE, 'input_size')
_FIELDS = (*_PLACE, 'w_bits', 'a_bits', 'us')
_PAIR = ('first', 'second', 'summed', 'bits', 'us')
_NOTE = 'executed_as'
_FLAT = ('Linear', 'MultiheadAttention')  # of inputs with any number of sides


@COSTS.register_module()
class Latency(Cost):
    """Microseconds of a layer, looked up by shape and precision.

    A layer costs the sum over its inputs (its calls, or the RoIs of a call) of the
    entry for their size. A layer that is never called, or skipped, costs nothing.

    Args:
        table: A JSON file: a list of ``{"type": "Conv2d", "in_channels": 64,
            "out_channels": 64, "kernel_size": [3, 3], "stride": [1, 1], "groups": 1,
            "input_size": [56, 56], "w_bits": 4, "a_bits": 4, "us": 12.5}``. ``type``
            is one of :data:`mmmpq.costs.layer_types.LAYER_TYPES`. ``input_size`` is
            the spatial size, [] for a linear layer on (N, C). ``us`` is the time of
            one input of that size. Float entries have 32 bits. ``executed_as``, the
            precision that took that time, is a note. The list may be the ``entries``
            of a dict whose other keys say how it was measured, and whose ``pairs``, if
            there are any, is a list of ``{"first": {…}, "second": {…}, "summed": false,
            "bits": [[1, 8], [1, 8]], "us": -20.1}``: for one input, what two layers in
            a row take together beyond their entries (below 0: less), if the larger of
            the first one's widths lies in the first range and that of the second one's
            in the second. ``{…}`` has the fields of an entry from ``type`` to
            ``input_size``; ``summed``: whether the second reads a sum of several.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged; an entry lacks a field or holds a bad value;
            two entries have the same key.
    """

    unit = 'us'
    needs = ('shape',)
    units = {'us': 1.0, **LADDERS['us']}

    def __init__(self, table: str | Path) -> None:
        self.path = str(table)
        if not Path(table).is_file():
            raise FileNotFoundError(f'Latency table {self.path!r} does not exist')
        try:
            rows = strict_json(Path(table).read_text())
        except ValueError as error:
            raise ValueError(
                f'Latency table {self.path} is not JSON: {error}'
            ) from error
        pairs = rows.get('pairs', []) if isinstance(rows, dict) else []
        rows = rows.get('entries') if isinstance(rows, dict) else rows
        if not isinstance(rows, list) or not rows:
            raise ValueError(
                f'Latency table {self.path}: expected a list of entries with '
                f'{", ".join(_FIELDS)}'
            )
        self._us = {}
        for index, row in enumerate(rows):
            key, us = self._parse(index, row)
            if key in self._us:
                raise ValueError(
                    f'Latency table {self.path}: entry {index} repeats {_text(key)}'
                )
            self._us[key] = us
        if not isinstance(pairs, list):
            raise ValueError(
                f'Latency table {self.path}: pairs is {pairs!r}; needed is a list'
            )
        self._pairs: dict[tuple, list] = {}
        for index, row in enumerate(pairs):
            places, *rest = self._parse_pair(index, row)
            self._pairs.setdefault(places, []).append(rest)
        self.pairwise = bool(pairs)

    def _parse(self, index: int, row: dict) -> tuple:
        where = f'Latency table {self.path}: entry {index}'
        if not isinstance(row, dict) or set(row) - {_NOTE} != set(_FIELDS):
            found = sorted(row) if isinstance(row, dict) else row
            raise ValueError(f'{where} has {found}; needed are {sorted(_FIELDS)}')
        _check_type(row, where)
        _check_sizes(row, where)
        us = row['us']
        if not _is_number(us) or not us >= 0:
            raise ValueError(f'{where} has us={us!r}; needed is a number >= 0')
        precision = Precision.parse((row['w_bits'], row['a_bits']), where)
        if precision == SKIP:
            raise ValueError(f'{where} has 0 bits: a skipped layer costs nothing')
        return _key(row['type'], row, row['input_size'], precision), float(us)

    def _parse_pair(self, index: int, row: dict) -> tuple:
        where = f'Latency table {self.path}: pair {index}'
        if not isinstance(row, dict) or set(row) != set(_PAIR):
            found = sorted(row) if isinstance(row, dict) else row
            raise ValueError(f'{where} has {found}; needed are {sorted(_PAIR)}')
        for name in ('first', 'second'):
            place = row[name]
            if not isinstance(place, dict) or set(place) != set(_PLACE):
                found = sorted(place) if isinstance(place, dict) else place
                raise ValueError(
                    f'{where} has {name}={found!r}; needed are {sorted(_PLACE)}'
                )
            _check_type(place, f'{where}, {name},')
            _check_sizes(place, f'{where}, {name},')
        if not isinstance(row['summed'], bool):
            raise ValueError(
                f'{where} has summed={row["summed"]!r}; needed is true or false'
            )
        if not _are_ranges(row['bits']):
            raise ValueError(
                f'{where} has bits={row["bits"]!r}; needed are two ranges of widths '
                'such as [[1, 8], [1, 8]]'
            )
        if not _is_number(row['us']):
            raise ValueError(f'{where} has us={row["us"]!r}; needed is a number')
        places = tuple(
            _place(p['type'], p, p['input_size']) for p in (row['first'], row['second'])
        )
        return (*places, row['summed']), *row['bits'], float(row['us'])

    def __call__(self, layer: LayerProfile, precision: Precision) -> float:
        total = 0.0
        if precision == SKIP:
            return total
        for size, count in layer.shape['input_sizes'].items():
            key = _key(layer.type, layer.shape, size, precision)
            if key not in self._us:
                raise KeyError(self._missing(layer, key, precision))
            total += count * self._us[key]
        return total

    def between(
        self,
        feed: Feed,
        first: LayerProfile,
        second: LayerProfile,
        first_precision: Precision,
        second_precision: Precision,
    ) -> float:
        if SKIP in (first_precision, second_precision):
            return 0.0
        places = (
            _place(first.type, first.shape, feed.first_size),
            _place(second.type, second.shape, feed.second_size),
            feed.summed,
        )
        widths = max(first_precision), max(second_precision)
        return feed.inputs * sum(
            us
            for *ranges, us in self._pairs.get(places, ())
            if all(a <= w <= b for w, (a, b) in zip(widths, ranges, strict=True))
        )

    def _missing(self, layer: LayerProfile, key: tuple, precision: Precision) -> str:
        def distance(other: tuple) -> int:
            return sum(a != b for a, b in zip(key, other, strict=True))

        nearest = sorted(self._us, key=distance)[:3]
        return (
            f'Latency table {self.path} has no entry for layer {layer.name!r} at '
            f'{precision}: {_text(key)}; nearest entries: '
            + '; '.join(_text(other) for other in nearest)
            + ". Accepted are candidates that it has; quant.ends='fixed' leaves stem "
            'and prediction layers at W8A8'
        )


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _are_ranges(bits: Any) -> bool:
    return (
        isinstance(bits, list)
        and len(bits) == 2
        and all(
            isinstance(ends, list)
            and len(ends) == 2
            and all(type(n) is int for n in ends)
            and 1 <= ends[0] <= ends[1] <= 32
            for ends in bits
        )
    )


def _check_type(row: dict, where: str) -> None:
    """Raises ValueError for a type that no layer has."""
    if str(row['type']) not in LAYER_TYPES:
        raise ValueError(
            f'{where} has type {row["type"]!r}; {near(str(row["type"]), LAYER_TYPES)}'
        )


def _check_sizes(row: dict, where: str) -> None:
    """Raises ValueError for sizes that no layer of that type has."""
    sides = 1 if row['type'] in _FLAT else int(row['type'][-2])
    for name in (*_SHAPE, 'input_size'):
        found = row[name]
        listed = found if isinstance(found, list) else [found]
        is_list = name in ('kernel_size', 'stride', 'input_size')
        length = len(listed) if name == 'input_size' and sides == 1 else sides
        if (
            isinstance(found, list) != is_list
            or not all(type(n) is int and n > 0 for n in listed)
            or (is_list and len(found) != length)
        ):
            accepted = f'{length} positive ints' if is_list else 'an int above 0'
            raise ValueError(
                f'{where} has {name}={found!r}; needed, for {row["type"]}, is '
                + (f'a list of {accepted}' if is_list else accepted)
            )


def _place(type_: str, shape: dict, size: list) -> tuple:
    parts = [shape[name] for name in _SHAPE] + [size]
    frozen = (tuple(p) if isinstance(p, (list, tuple)) else p for p in parts)
    return (type_, *frozen)


def _key(type_: str, shape: dict, size: list, precision: Precision) -> tuple:
    return (*_place(type_, shape, size), precision.w_bits, precision.a_bits)


def _text(key: tuple) -> str:
    return ', '.join(
        f'{name}={part}' for name, part in zip(_FIELDS[:-1], key, strict=True)
    )
