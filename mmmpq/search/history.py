"""What a search went through, a line a record."""

import json
from pathlib import Path
from typing import Any

from mmmpq.fileio import atomic_write
from mmmpq.layers import on_host
from mmmpq.search.search import Search

FILE = 'search_history.jsonl'


class History:
    """``search_history.jsonl`` in the folder of a run, read by the report.

    Args:
        work_dir: Folder of the run.
    """

    def __init__(self, work_dir: str | Path) -> None:
        self.path = Path(work_dir) / FILE

    def begin(self, search: Search) -> None:
        """Starts the file with what the records refer to."""
        header = dict(
            groups={
                g.name: dict(
                    layers=g.layers, candidates=[list(c) for c in g.candidates]
                )
                for g in search.space.groups
            },
            budgets=[
                dict(
                    type=t.name,
                    limit=t.limit,
                    unit=t.unit,
                    min=t.min,
                    max=t.max,
                )
                for t in search.tables
            ],
            interval=search.settings.interval,
        )
        self.path.write_text(json.dumps(header) + '\n')

    def resume(self, iteration: int) -> bool:
        """Drops the records that the resumed run is going to write again.

        Returns:
            Whether there is a file to go on with.
        """
        if not self.path.is_file():
            return False
        lines: list[str] = []
        for line in self.path.read_text().splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break
            if record.get('iter', -1) < iteration:
                lines.append(line + '\n')
        atomic_write(self.path, ''.join(lines))
        return bool(lines)

    def append(self, record: dict[str, Any]) -> None:
        with self.path.open('a') as file:
            file.write(json.dumps(record) + '\n')


def record_of(
    search: Search, iteration: int, epoch: int = 0, loss: float | None = None
) -> dict[str, Any]:
    """Where a search is, as a record of its history.

    Args:
        search: A search that has begun.
        iteration, epoch: The present ones.
        loss: Task loss of the weights.
    """
    probs, last = on_host(search.space.probs()), search.last
    policy = search.space.policy(search.most_probable(probs))
    return dict(
        iter=iteration,
        epoch=epoch,
        loss=loss,
        penalties={n: last[n] for n in search.objective.names if n in last},
        expected=search.tables.expected(probs).tolist(),
        realised=[t.of(policy) for t in search.tables],
        bound=search.bounds(iteration),
        probs={
            g.name: p.tolist() for g, p in zip(search.space.groups, probs, strict=True)
        },
    )
