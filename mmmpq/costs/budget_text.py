"""Budgets as they are written on a command line."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mmmpq.costs.chip import chip_names
from mmmpq.costs.chip_cost import ChipCost, ChipEnergy
from mmmpq.costs.cost import Cost
from mmmpq.policy import near
from mmmpq.registry import COSTS

_FILE_NAME = str.maketrans(',*', '+x')


def budget_cfgs(
    text: str, default: str, common: Mapping[str, Any], table: str | None = None
) -> list[dict[str, Any]]:
    """The configs of the budgets that one argument names; they hold at once.

    Args:
        text: Such as ``'W3A3'``, ``'1.2 GBOPs'``, ``'W3A3, 20 KB'``; of a cost by its
            type, ``'WeightBytes: W4A4'``; of a chip, ``'bit_fusion: 5 ms'``.
        default: Type of the cost of budgets whose unit tells none.
        common: Keys of every config: input_shape and proposals; of costs on a chip also
            chip.
        table: Latency table.

    Raises:
        ValueError: A budget in time without a table, or of a cost or chip that is not
            there.

    Examples:
        >>> budget_cfgs('20 KB', 'BOPs', {})
        [{'type': 'WeightBytes', 'limit': '20 KB'}]
        >>> budget_cfgs('bit_fusion: 2 mJ', 'BOPs', {})
        [{'type': 'ChipEnergy', 'limit': '2 mJ', 'chip': 'bit_fusion'}]
    """
    cfgs = []
    for part in text.split(','):
        kind, _, limit = part.strip().rpartition(':')
        limit = limit.strip()
        share = re.fullmatch(r'([\d.]+)\s*\*\s*([Ww]\d+[Aa]\d+)', limit)
        if share:
            limit = dict(of=share[2], ratio=_number(share[1], part))
        kind = kind.strip() or _type_of(limit, default)
        cfg = dict(common, type=kind, limit=limit)
        if not issubclass(COSTS.module_dict.get(kind, Cost), ChipCost):
            cfg.pop('chip', None)
        if kind in chip_names() or kind.endswith('.json'):
            energy = _unit(limit) in ChipEnergy.units
            cfg.update(type='ChipEnergy' if energy else 'ChipLatency', chip=kind)
        elif kind.rpartition('mmmpq.')[2] not in COSTS.module_dict:
            known = [*COSTS.module_dict, *chip_names()]
            raise ValueError(
                f'budget {part.strip()!r}: unknown type {kind!r}; '
                f"{near(kind, known)}; accepted are {', '.join(known)} and a chip's "
                'JSON file'
            )
        if kind == 'Latency':
            if table is None:
                raise ValueError(
                    f'budget {part!r}: found no latency table; accepted are --table '
                    "FILE and, in a config, dict(type='Latency', limit=…, table=FILE); "
                    "or a chip, as in 'bit_fusion: 5 ms'"
                )
            cfg['table'] = table
        cfgs.append(cfg)
    return cfgs


def with_texts(
    budgets: Iterable[Any], common: Mapping[str, Any] | None = None, key: str = ''
) -> list[Any]:
    """Budgets with the configs of those that are texts in their place.

    Args:
        budgets: Configs, texts, or what is built already.
        common: Keys of a config that names none.
        key: That holds them, for the messages of errors.

    Examples:
        >>> with_texts(['W3A3', dict(type='WeightBytes', limit='1 MB')])[0]
        {'type': 'BOPs', 'limit': 'W3A3'}
    """
    return [budget for _, budget in with_places(budgets, common, key)]


def with_places(
    budgets: Iterable[Any], common: Mapping[str, Any] | None = None, key: str = ''
) -> Iterator[tuple[str, Any]]:
    """The same, and where each one stands: ``key[i]``; a text may hold several."""
    for i, budget in enumerate(budgets):
        place = f'{key}[{i}]'
        if isinstance(budget, str):
            try:
                cfgs = budget_cfgs(budget, 'BOPs', common or {})
            except ValueError as error:
                raise ValueError(f'{place}: {error}' if key else error) from error
            yield from ((place, cfg) for cfg in cfgs)
        elif common and isinstance(budget, Mapping):
            shared = {name: each for name, each in common.items() if name != 'chip'}
            yield place, {**shared, **budget}
        else:
            yield place, budget


def file_name(text: str) -> str:
    """A budget as a part of the name of a file.

    Examples:
        >>> file_name('0.9*W4A4, 20 KB')
        '0.9xW4A4+20KB'
    """
    return re.sub(r'[^\w.+-]+', '', text.translate(_FILE_NAME))


def _number(text: str, part: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(
            f'budget {part.strip()!r}: found {text!r}; accepted is a number'
        ) from None


def _unit(limit: Any) -> str:
    return re.sub(r'^[-+\d.eE\s]*', '', limit) if isinstance(limit, str) else ''


def _type_of(limit: Any, default: str) -> str:
    """The cost that has the unit of ``limit``: ``default`` where it has it too, and one
    of a chip, which has to be named, where nothing else has."""
    names = dict.fromkeys([default, 'BOPs', 'WeightBytes', *COSTS.module_dict])
    costs = {n: COSTS.module_dict[n] for n in names if n in COSTS.module_dict}
    known = [n for n, cost in costs.items() if _unit(limit) in cost.units]
    own = [n for n in known if n == default or not issubclass(costs[n], ChipCost)]
    return next(iter(own or known), default)
