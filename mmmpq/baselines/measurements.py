"""Measurements that a killed run leaves behind, for the next one to go on from."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmmpq.fileio import atomic_write
from mmmpq.search.space import SearchSpace

SEARCH_STATE = ('w_quantizer', 'a_quantizer', 'relaxation', 'own')


class Measurements:
    """Values by name, in a JSON file that is whole after every one of them.

    Args:
        path: The file; None keeps the values in memory alone.
        settings: What the values depend on, such as :func:`fingerprint`'s.

    Raises:
        ValueError: The file is damaged, or was measured under other settings; the
            message says which.
    """

    FORMAT = 'mmmpq-measurements'

    def __init__(
        self, path: str | Path | None = None, settings: dict[str, Any] | None = None
    ) -> None:
        self.path = None if path is None else Path(path)
        self.settings = json.loads(json.dumps(settings or {}))
        self.values: dict[str, Any] = {}
        if self.path is not None and self.path.exists():
            self.values = self._load()

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.values[key] = value
        if self.path is not None:
            data = dict(format=self.FORMAT, settings=self.settings, values=self.values)
            atomic_write(self.path, json.dumps(data, indent=1) + '\n')

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def _load(self) -> dict[str, Any]:
        try:
            data = json.loads(self.path.read_text())
        except ValueError as error:
            raise ValueError(
                f'cache: {self.path} is damaged or cut short: it is no JSON ({error}); '
                'delete it'
            ) from error
        if not isinstance(data, dict) or data.get('format') != self.FORMAT:
            raise ValueError(f'cache: {self.path} is JSON, but no {self.FORMAT} file')
        check_settings(self.path, data.get('settings', {}), self.settings)
        return data.get('values', {})


def check_settings(
    path: Path, before: dict[str, Any], now: dict[str, Any], what: str = 'cache'
) -> None:
    """Raises ValueError, naming the difference, if a file is of something else.

    Args:
        path: The file.
        before: What it says that it was measured for.
        now: What it would be measured for now.
        what: What the file is, for the message.
    """
    differences = [
        f'{key} ({_difference(before.get(key), now.get(key))})'
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise ValueError(
            f'{what}: {path} was measured for something else; what differs: '
            f'{", ".join(differences)}. Delete it, or choose another work directory'
        )


def fingerprint(model: nn.Module, space: SearchSpace) -> dict[str, Any]:
    """What tells a supernet from others: class, groups, candidates, float weights.

    Call it before quantizers are calibrated or after, it does not look at them.
    """
    return dict(
        model=type(model).__name__,
        groups={g.name: g.layers for g in space.groups},
        fixed={name: str(p) for name, p in space.fixed.items()},
        candidates={g.name: list(map(str, g.candidates)) for g in space.groups},
        weights=digest(model, SEARCH_STATE),
    )


def digest(model: nn.Module, without: Sequence[str] = ()) -> str:
    """16 hex digits of all parameters and buffers but those inside some modules."""
    sha = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not set(without) & set(name.split('.')):
            sha.update(name.encode())
            values = tensor.detach().cpu().contiguous().flatten()
            sha.update(values.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]


def _difference(before: Any, now: Any, most: int = 3) -> str:
    """Of two dicts the entries that differ, else both values."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [n for n in {**before, **now} if before.get(n) != now.get(n)]
        parts = [f'{n}: {_difference(before.get(n), now.get(n))}' for n in names[:most]]
        if len(names) > most:
            parts.append(f'{len(names) - most} more')
        return '; '.join(parts)
    return f'there {_text(before)}, here {_text(now)}'


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ' '.join(map(str, value))
    return 'nothing' if value is None else str(value)
