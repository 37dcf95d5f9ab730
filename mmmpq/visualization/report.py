"""Writes the report of a search: ``report/index.html`` and its figures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmmpq.fileio import atomic_write
from mmmpq.policy import Policy, near
from mmmpq.visualization import curves, heat_map, page, plots
from mmmpq.visualization.history import SearchHistory
from mmmpq.visualization.page import Row
from mmmpq.visualization.sizes import Sizes, check_sizes
from mmmpq.visualization.theme import DARK, LIGHT, draw

_ROW_KEYS = ('name', 'metric', 'bops', 'weight_bytes', 'expected_bops', 'seconds')
LARGE = 2_200_000  # bytes of pictures, a third more as text: then one theme is enough
_COST_KEYS = {'BOPs': 'bops', 'WeightBytes': 'weight_bytes'}


def write_report(
    work_dir: str | Path,
    rows: Sequence[Row] | None = None,
    out_dir: str | Path | None = None,
    sizes: Sizes | None = None,
) -> Path:
    """Make the report of a search from the files in its ``work_dir``.

    Reads ``policy.json`` and ``search_history.jsonl``; writes ``index.html``, which
    needs no other file, and ``bits.png``, ``probabilities.png``, ``cost.png`` and
    ``penalties.png``. Every file is written beside its place and then renamed.

    Args:
        work_dir: Folder of a finished or running search.
        rows: Nets to compare, the float one first: ``name``,
            and where known ``metric`` (accuracy), ``bops``, ``weight_bytes``,
            ``expected_bops``, ``seconds``. Default: what the policy's meta tells.
        out_dir: Default ``<work_dir>/report``.
        sizes: Of the exported files, from the sizes.json of ``mmmpq export``.

    Returns:
        The ``index.html``.

    Raises:
        FileNotFoundError: An input file is missing.
        ValueError: One is damaged, or the two are from different searches.
    """
    work_dir = Path(work_dir)
    out_dir = work_dir / 'report' if out_dir is None else Path(out_dir)
    path = work_dir / 'policy.json'
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} does not exist: SearchHook writes it after every epoch and at '
            'the end of a search'
        )
    policy = Policy.load(path)
    history = SearchHistory.load(work_dir / 'search_history.jsonl')
    strangers = [n for n in history.group_of if n not in policy.layers]
    if strangers:
        raise ValueError(
            f'{work_dir}: search_history.jsonl and policy.json are from different '
            f'searches: the policy has no layer {", ".join(strangers[:5])}'
        )
    rows = check_rows(rows) if rows else known_rows(policy.meta)
    if sizes is not None:
        check_sizes(sizes)
    figures = {
        'bits': (plots.bits, policy.layers, history),
        'probabilities': (plots.probabilities, policy.layers, history),
        'cost': (curves.costs, history, _final_costs(policy.meta, history)),
        'penalties': (curves.penalties, history),
    }
    if not history.budgets:
        del figures['cost']
    if not history.groups:
        del figures['probabilities']
    elif len(history.groups) > heat_map.GROUPS:
        figures['probabilities'] = (heat_map.expected_bits, policy.layers, history)
    images = {}
    for name, (figure, *args) in figures.items():
        images[name] = {
            theme.name: draw(figure, theme, *args) for theme in (LIGHT, DARK)
        }
        atomic_write(out_dir / f'{name}.png', images[name]['light'])
    if sum(len(png) for themes in images.values() for png in themes.values()) > LARGE:
        images = {name: dict(light=themes['light']) for name, themes in images.items()}
    html = page.render(work_dir, policy, history, rows, images, sizes)
    atomic_write(out_dir / 'index.html', html)
    return out_dir / 'index.html'


def check_rows(rows: Sequence[Row], source: str = 'rows') -> list[Row]:
    """``rows`` as they are, if they can be shown.

    Raises:
        ValueError: A row without a name, an unknown key, or what is no number.
    """
    if not isinstance(rows, (list, tuple)):
        raise ValueError(f'{source} must be a list of dicts, found {rows!r:.60}')
    for index, row in enumerate(rows):
        where = f'{source}[{index}]'
        if not isinstance(row, dict) or not isinstance(row.get('name'), str):
            raise ValueError(f"{where} must be a dict with a 'name', found {row!r:.60}")
        for key, value in row.items():
            if key not in _ROW_KEYS:
                raise ValueError(
                    f'{where} has key {key!r}; {near(str(key), _ROW_KEYS)}; accepted: '
                    f'{_ROW_KEYS}'
                )
            if key != 'name' and value is not None and not _is_number(value):
                raise ValueError(f'{where}[{key!r}] must be a number, found {value!r}')
    return list(rows)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
    )


def known_rows(meta: Mapping[str, Any]) -> list[Row]:
    """Rows without accuracy, from ``meta['costs']`` or else the budgets' costs."""
    costs = dict(meta.get('costs') or {})
    if 'searched' not in costs:
        costs['searched'] = {
            _COST_KEYS[b['type']]: b.get('cost')
            for b in meta.get('budgets') or ()
            if b.get('type') in _COST_KEYS
        }
    rows = []
    for kind in ('float', 'uniform', 'searched'):
        cost = costs.get(kind)
        if cost:
            name = f'{kind} {cost["name"]}' if 'name' in cost else kind
            rows.append({'name': name, **{k: cost.get(k) for k in _COST_KEYS.values()}})
    return rows


def _final_costs(meta: Mapping[str, Any], history: SearchHistory) -> list[float | None]:
    """The policy's cost under every budget of the history, None where unknown."""
    budgets = meta.get('budgets') or []
    if len(budgets) != len(history.budgets):
        return [None] * len(history.budgets)
    return [budget.get('cost') for budget in budgets]
