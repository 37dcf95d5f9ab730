"""What a search wrote down while it ran: ``search_history.jsonl``."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

_WRITER = 'SearchHook writes it into the work_dir of a search'


@dataclass
class SearchHistory:
    """The header and the records of a search.

    Attributes:
        groups (dict): Group name -> ``{'layers': [str, ...],
            'candidates': [[w_bits, a_bits], ...]}``.
        budgets (list[dict]): ``{'type', 'limit', 'unit', 'min', 'max'}`` each.
        records (list[dict]): ``iter``, ``epoch``, ``loss``, ``penalties``,
            ``expected``, ``realised``, ``probs``, ascending in ``iter``.
    """

    groups: dict
    budgets: list
    records: list

    @classmethod
    def load(cls, path):
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
        if not _is_header(header):
            raise ValueError(
                f"{path}, line 1: found {str(header)[:200]!r}; needed are 'groups', a "
                "dict of dicts with a list of 'layers' and of 'candidates', and "
                f"'budgets', a list of dicts; {_WRITER}"
            )
        for kind, entries, keys in (
            ('group', header['groups'].values(), {'layers', 'candidates'}),
            ('budget', header['budgets'], {'type', 'limit', 'unit'}),
        ):
            for entry in entries:
                if not keys <= set(entry):
                    raise ValueError(
                        f'{path}, line 1: a {kind} needs {sorted(keys)}, found {entry}'
                    )
        history = cls(header['groups'], header['budgets'], [])
        for number, row in rows[1:]:
            if isinstance(row, dict) and 'groups' in row:  # a resumed search's header
                continue
            fault = history._fault(row)
            if fault:
                raise ValueError(f'{path}, line {number}: {fault}; {_WRITER}')
            while history.records and history.records[-1]['iter'] >= row['iter']:
                history.records.pop()
            history.records.append(row)
        return history

    def _fault(self, record):
        """What is wrong with a record, or None."""
        try:
            return self._lack(record)
        except TypeError as error:
            return f'a value of the record is of another type ({error})'

    def _lack(self, record):
        keys = {'iter', 'loss', 'penalties', 'expected', 'realised', 'probs'}
        if not isinstance(record, dict) or not keys <= set(record):
            missing = sorted(keys - set(record if isinstance(record, dict) else ()))
            return f'the record lacks {missing}'
        for key in ('expected', 'realised'):
            if not isinstance(record[key], list):
                return f'{key!r} is {record[key]!r}, a list is needed'
            if len(record[key]) != len(self.budgets):
                return (
                    f'{key!r} has {len(record[key])} numbers, the header names '
                    f'{len(self.budgets)} budgets'
                )
        for name, group in self.groups.items():
            found = len(record['probs'].get(name, ()))
            if found != len(group['candidates']):
                return (
                    f'probs of group {name!r} has {found} numbers, the header '
                    f'names {len(group["candidates"])} candidates'
                )
        return None

    @property
    def iters(self):
        return [record['iter'] for record in self.records]

    @property
    def group_of(self):
        """Layer name -> group name."""
        return {layer: name for name, g in self.groups.items() for layer in g['layers']}

    def numbers(self, key, index=None):
        """``record[key]`` (or its ``[index]``) of every record; NaN where absent."""
        values = []
        for record in self.records:
            value = record.get(key)
            if index is not None and isinstance(value, list):
                value = value[index] if index < len(value) else None
            elif index is not None and isinstance(value, dict):
                value = value.get(index)
            values.append(math.nan if value is None else float(value))
        return values


def _is_header(header):
    groups, budgets = header['groups'], header['budgets']
    return (
        isinstance(groups, dict)
        and isinstance(budgets, list)
        and all(isinstance(entry, dict) for entry in (*groups.values(), *budgets))
        and all(
            isinstance(group.get(key, []), list)
            for group in groups.values()
            for key in ('layers', 'candidates')
        )
    )
