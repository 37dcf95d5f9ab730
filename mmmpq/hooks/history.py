"""What a search went through, a line a record."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmmpq.fileio import atomic_write
from mmmpq.search import CostTable, SearchSpace

FILE = 'search_history.jsonl'


class History:
    """``search_history.jsonl`` in the folder of a run, read by the report.

    Args:
        work_dir: Folder of the run.
    """

    def __init__(self, work_dir: str) -> None:
        self.path = Path(work_dir) / FILE

    def begin(
        self, space: SearchSpace, tables: Sequence[CostTable], interval: int
    ) -> None:
        """Starts the file with what the records refer to."""
        header = dict(
            groups={
                g.name: dict(
                    layers=g.layers, candidates=[list(c) for c in g.candidates]
                )
                for g in space.groups
            },
            budgets=[
                dict(
                    type=t.name,
                    limit=t.limit,
                    unit=t.budget.cost.unit,
                    min=t.min,
                    max=t.max,
                )
                for t in tables
            ],
            interval=interval,
        )
        self.path.write_text(json.dumps(header) + '\n')

    def resume(self, iteration: int) -> bool:
        """Drops the records that the resumed run is going to write again.

        Returns:
            Whether there is a file to go on with.
        """
        if not self.path.is_file():
            return False
        kept: list[str] = []
        for line in self.path.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if record.get('iter', -1) < iteration:
                kept.append(line + '\n')
        atomic_write(self.path, ''.join(kept))
        return bool(kept)

    def append(self, record: dict[str, Any]) -> None:
        with self.path.open('a') as file:
            file.write(json.dumps(record) + '\n')
