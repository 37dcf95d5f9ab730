"""What a search wrote down while it ran: ``search_history.jsonl``."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WRITER = 'SearchHook writes it into the work_dir of a search'
GROUP = dict(layers=list, candidates=list)
BUDGET = dict(type=object, limit=object, unit=object)
RECORD = {'iter', 'loss', 'penalties', 'expected', 'realised', 'probs'}


@dataclass
class SearchHistory:
    """The header and the records of a search.

    Attributes:
        groups: Group name -> ``{'layers': [str, ...],
            'candidates': [[w_bits, a_bits], ...]}``.
        budgets: ``{'type', 'limit', 'unit', 'min', 'max'}`` each.
        records: ``iter``, ``epoch``, ``loss``, ``penalties``,
            ``expected``, ``realised``, ``probs``, ascending in ``iter``.
    """

    groups: dict[str, dict[str, Any]]
    budgets: list[dict[str, Any]]
    records: list[dict[str, Any]]

    @classmethod
    def load(cls, path: str | Path) -> 'SearchHistory':
        """Read the JSON lines: one header, then the records.

        A last line that was cut short (the search was killed or is just writing)
        is left out. Records that a resumed search wrote again replace the older
        ones.

        Raises:
            FileNotFoundError: No such file.
            ValueError: A line is not what it should be; the line is named.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f'{path} does not exist: {_WRITER}')
        lines = path.read_text(encoding='utf-8', errors='replace').splitlines()
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                if number == len(lines) > 1:
                    break
                raise ValueError(
                    f'{path}, line {number} is not JSON ({error}): the file is '
                    f'damaged; {_WRITER}'
                ) from error
        header = rows[0][1] if rows else None
        if not isinstance(header, dict) or not {'groups', 'budgets'} <= set(header):
            raise ValueError(
                f"{path}, line 1 must be the header with 'groups' and 'budgets', "
                f'found {str(header)[:60]!r}; {_WRITER}'
            )
        groups, budgets = header['groups'], header['budgets']
        entries = [(GROUP, g) for g in _each(groups, dict)]
        for fields, entry in entries + [(BUDGET, b) for b in _each(budgets, list)]:
            if not isinstance(entry, dict) or not all(
                key in entry and isinstance(entry[key], kind)
                for key, kind in fields.items()
            ):
                raise ValueError(
                    f'{path}, line 1: a {"group" if fields is GROUP else "budget"} '
                    f'needs {sorted(fields)}, found {entry!r:.200}; {_WRITER}'
                )
        history = cls(header['groups'], header['budgets'], [])
        for number, row in rows[1:]:
            if isinstance(row, dict) and 'groups' in row:  # a resumed search's header
                continue
            try:
                fault = history._fault(row)
            except TypeError as error:
                fault = f'a value of the record is of another type ({error})'
            if fault:
                raise ValueError(f'{path}, line {number}: {fault}; {_WRITER}')
            while history.records and history.records[-1]['iter'] >= row['iter']:
                history.records.pop()
            history.records.append(row)
        return history

    def _fault(self, record: Any) -> str | None:
        """What is wrong with a record, or None."""
        missing = RECORD - set(record if isinstance(record, dict) else ())
        if missing:
            return f'the record lacks {sorted(missing)}'
        for key in ('expected', 'realised'):
            if not isinstance(record[key], list):
                return f'{key!r} is {record[key]!r}, a list is needed'
            if len(record[key]) != len(self.budgets):
                return (
                    f'{key!r} has {len(record[key])} numbers, the header names '
                    f'{len(self.budgets)} budgets'
                )
        for name, group in self.groups.items():
            count = len(record['probs'].get(name, ()))
            if count != len(group['candidates']):
                return (
                    f'probs of group {name!r} has {count} numbers, the header '
                    f'names {len(group["candidates"])} candidates'
                )
        return None

    @property
    def iters(self) -> list[int]:
        return [record['iter'] for record in self.records]

    @property
    def group_of(self) -> dict[str, str]:
        """Layer name -> group name."""
        return {layer: name for name, g in self.groups.items() for layer in g['layers']}

    def numbers(self, key: str, index: int | str | None = None) -> list[float]:
        """``record[key]`` (or its ``[index]``) of every record; NaN where absent."""
        values = [record.get(key) for record in self.records]
        if index is not None:
            values = [
                dict(enumerate(v) if isinstance(v, list) else v or {}).get(index)
                for v in values
            ]
        return [math.nan if v is None else float(v) for v in values]


def _each(entries: Any, kind: type) -> list[Any]:
    """The entries of a list or dict; what is neither, as its one wrong entry."""
    if not isinstance(entries, kind):
        return [entries]
    return list(entries.values() if kind is dict else entries)
