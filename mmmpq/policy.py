"""Precisions of layers and the policy file that holds them."""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mmmpq.fileio import atomic_write, strict_json
from mmmpq.units import statement

BITS = (1, 2, 3, 4, 5, 6, 7, 8, 32)
A_BITS = (*BITS[:-1], 16, 32)  # of activations
QUANT = {'w_quantizer', 'a_quantizer', 'float_layers'}  # keys of a policy's meta.quant


class Precision(NamedTuple):
    """Bit-widths of one layer's weights and of its input activations.

    1 to 8, of activations 16 as well; 32 is float. (0, 0), of all layers of a residual
    block, means that the block is skipped: it returns its input.
    """

    w_bits: int
    a_bits: int

    def __str__(self) -> str:
        return f'W{self.w_bits}A{self.a_bits}'

    @classmethod
    def parse(cls, value: Any, key: str = 'precision') -> 'Precision':
        """Reads ``'W4A4'``, ``(4, 4)`` or a ``Precision``.

        Args:
            value: What a config or file holds.
            key: Its name there, for the message of an error.

        Raises:
            ValueError: Neither form, a width that is not 1 to 8 or 32 (nor 16, of
                activations), or a 0 that is not one of the pair (0, 0).

        Examples:
            >>> Precision.parse('W4A8')
            Precision(w_bits=4, a_bits=8)
        """
        if isinstance(value, str):
            match = re.fullmatch(r'[Ww](\d+)[Aa](\d+)', value)
            value = tuple(map(int, match.groups())) if match else value
        if (
            isinstance(value, (str, bytes))
            or not isinstance(value, Sequence)
            or len(value) != 2
        ):
            raise ValueError(
                f'{key}: found {value!r}; accepted are a name such as "W4A4" or a '
                'pair (w_bits, a_bits)'
            )
        for bits, accepted in zip(value, (BITS, A_BITS), strict=True):
            wrong = bits not in accepted and tuple(value) != SKIP
            if isinstance(bits, bool) or wrong:
                raise ValueError(
                    f'{key}: found {bits!r} bits in {value!r}; accepted are 1 to 8, '
                    'and 32 for float, of activations 16 too; (0, 0), as a pair, skips '
                    'a residual block'
                )
        return cls(*map(int, value))


FLOAT = Precision(32, 32)
SKIP = Precision(0, 0)


def parse_candidates(values: Any, key: str = 'candidates') -> tuple[Precision, ...]:
    """The candidate precisions of a layer, in the order given.

    Raises:
        ValueError: None is given, one is given twice, or one cannot be read.
    """
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ValueError(
            f'{key}: found {values!r}; accepted is a list of precisions such as '
            '[(2, 2), (4, 4)]'
        )
    candidates = tuple(Precision.parse(v, f'{key}[{i}]') for i, v in enumerate(values))
    if not candidates:
        raise ValueError(f'{key}: found an empty list; at least one is needed')
    twice = sorted({c for c in candidates if candidates.count(c) > 1})
    if twice:
        raise ValueError(f'{key}: {", ".join(map(str, twice))} is given more than once')
    return candidates


@dataclass
class Policy:
    """The precision of every quantized layer, and what it was found for.

    Args:
        layers: Precision of each quantized layer, by its name in the model.
        meta: What the policy was found for: model, input_shape, budgets (with the
            cost that the policy has), seed, version of mmmpq; and in ``quant`` how its
            net is quantized, see ``QUANT``.
    """

    layers: dict[str, Precision]
    meta: dict[str, Any] = field(default_factory=dict)

    FORMAT = 'mmmpq-policy'
    VERSION = 1

    def __str__(self) -> str:
        """A table, a layer a line, and what the net costs of each budget.

        It is an expression as well: MMEngine writes configs by ``str``.
        """
        names = [f'{name!r}:' for name in self.layers]
        width = max(map(len, names), default=0)
        lines = [
            f'    {name:<{width}} {str(precision)!r},'
            for name, precision in zip(names, self.layers.values(), strict=True)
        ]
        for budget in self.meta.get('budgets') or ():
            if isinstance(budget, Mapping) and {'cost', 'limit', 'unit'} <= {*budget}:
                numbers = (budget[key] for key in ('cost', 'limit', 'unit'))
                kind = budget.get('type', 'cost')
                lines.append(f'    # {kind}: {statement(*numbers)}')
        return '\n'.join(['{', *lines, '}'])

    def save(self, path: str | Path) -> Path:
        """Writes the policy as JSON, a layer a line."""
        layers = ',\n'.join(
            f'    {json.dumps(name)}: [{p.w_bits}, {p.a_bits}]'
            for name, p in self.layers.items()
        )
        text = (
            f'{{\n  "format": "{self.FORMAT}",\n  "version": {self.VERSION},\n'
            f'  "layers": {{\n{layers}\n  }},\n'
            f'  "meta": {json.dumps(self.meta, indent=2)}\n}}\n'
        )
        return atomic_write(path, text)

    @classmethod
    def load(cls, path: str | Path) -> 'Policy':
        """Reads a policy file.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a policy, is damaged, or of a newer version.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(
                f'policy: found no file {path}; accepted are a policy.json that a '
                'search wrote and a uniform precision such as "W4A4"'
            )
        try:
            data = strict_json(Path(path).read_text())
        except ValueError as error:
            raise ValueError(
                f'policy: {path} is damaged or cut short: it is no JSON ({error})'
            ) from error
        if not isinstance(data, dict) or data.get('format') != cls.FORMAT:
            raise ValueError(f'policy: {path} is JSON, but no {cls.FORMAT} file')
        return cls.from_dict(data, str(path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = 'policy') -> 'Policy':
        """The policy whose file holds ``data``.

        Args:
            data: As :meth:`to_dict` gives it.
            source: Where it is from, for the message of an error.

        Raises:
            ValueError: It is of a newer version, or holds no layers.
        """
        version, layers = data.get('version'), data.get('layers')
        if type(version) is not int or not 1 <= version <= cls.VERSION:
            raise ValueError(
                f'policy: {source} has format version {version!r}; this mmmpq reads '
                f'up to {cls.VERSION}'
            )
        if not isinstance(layers, Mapping) or not layers:
            raise ValueError(f'policy: {source} holds no layers')
        meta = data.get('meta') or {}
        if not isinstance(meta, Mapping):
            raise ValueError(
                f'policy: {source}: meta: found {meta!r:.60}; accepted is a dict'
            )
        meta = dict(meta)
        quant = meta.get('quant')
        if quant is not None and (not isinstance(quant, Mapping) or {*quant} != QUANT):
            raise ValueError(
                f'policy: {source}: meta.quant: found {quant!r}; accepted is a dict of '
                f'{", ".join(sorted(QUANT))}'
            )
        return cls(
            {n: Precision.parse(p, f'{source}: {n}') for n, p in layers.items()}, meta
        )

    def to_dict(self) -> dict[str, Any]:
        """What the policy's file holds: a config may have it in place of the path."""
        return dict(
            format=self.FORMAT,
            version=self.VERSION,
            layers={name: list(p) for name, p in self.layers.items()},
            meta=self.meta,
        )

    def check_layers(self, names: Iterable[str]) -> None:
        """Raises ValueError if the policy's layers are not exactly ``names``."""
        names = dict.fromkeys(names)
        unknown = [n for n in self.layers if n not in names]
        missing = [n for n in names if n not in self.layers]
        if unknown or missing:
            raise ValueError(
                f'policy: it was found for {self.meta.get("model", "another model")}, '
                'whose quantized layers differ from this model: '
                f'{_titled("only in the policy", unknown)}'
                f'{_titled("only in the model", missing)}'
            )


def _titled(title: str, names: list[str]) -> str:
    return f'{title}: {some_of(names, 8)}. ' if names else ''


def some_of(names: Sequence[str], most: int = 3) -> str:
    """The first of many names, and how many more, for a message."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def near(name: str, names: Iterable[str], most: int = 3) -> str:
    """Near names among ``names``, for the end of an error message."""
    names = list(names)
    nearest = difflib.get_close_matches(name, names, most, 0.4) or names[:most]
    return f'near names: {", ".join(nearest)}' if nearest else 'there are none at all'
