"""Measured subnets in a file that a killed run can go on with."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmmpq.baselines.measurements import check_settings
from mmmpq.fileio import atomic_write
from mmmpq.subnets.space import Subnet


class Samples:
    """Subnets and their metrics, a line of JSON each, in the order of measuring.

    The first line says what they belong to.

    Args:
        path: The file; it is made with the first sample.
        settings: What the metrics depend on: model, weights, data.

    Attributes:
        records: ``dict(subnet=..., metrics=...)`` each.

    Raises:
        ValueError: The file is damaged, or was measured for something else; the message
            names the difference.
    """

    FORMAT = 'mmmpq-samples'

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings, default=str))
        self.records: list[dict[str, Any]] = []
        if self.path.exists():
            self._load()
        self._by_subnet = {_key(r['subnet']): r['metrics'] for r in self.records}

    def missing(self, subnets: Iterable[Subnet]) -> list[Subnet]:
        """Those that are not measured yet, each once, in their order."""
        distinct = {_key(subnet): subnet for subnet in subnets}
        return [s for key, s in distinct.items() if key not in self._by_subnet]

    def __contains__(self, subnet: Subnet) -> bool:
        return _key(subnet) in self._by_subnet

    def __getitem__(self, subnet: Subnet) -> dict[str, float]:
        return self._by_subnet[_key(subnet)]

    def __setitem__(self, subnet: Subnet, metrics: dict[str, float]) -> None:
        if not self.records:
            head = dict(format=self.FORMAT, settings=self.settings)
            atomic_write(self.path, json.dumps(head) + '\n')
        record = dict(subnet=subnet, metrics=metrics)
        with self.path.open('a') as file:
            file.write(json.dumps(record) + '\n')
        self.records.append(record)
        self._by_subnet[_key(subnet)] = metrics

    def _load(self) -> None:
        text = self.path.read_text()
        whole, _, torn = text.rpartition('\n')  # a kill can leave half a line
        try:
            head, *self.records = map(json.loads, whole.split('\n'))
        except ValueError as error:
            raise ValueError(
                f'samples: {self.path} is damaged ({error}); delete it'
            ) from error
        if not isinstance(head, dict) or head.get('format') != self.FORMAT:
            raise ValueError(f'samples: {self.path} is no {self.FORMAT} file')
        check_settings(self.path, head['settings'], self.settings, 'samples')
        if torn:
            atomic_write(self.path, whole + '\n')


def _key(subnet: Subnet) -> str:
    return json.dumps(subnet, sort_keys=True)
