"""What a stage of :mod:`gpu` is given, and where it puts what it finds."""

import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """What all stages are told.

    Attributes:
        device: 'cuda' or 'cpu'.
        tiny: A dry run: the same code on the smallest sizes.
        work: Folder for data and runs, removed at the end.
    """

    device: str
    tiny: bool
    work: Path

    @property
    def jobs(self) -> int:
        """Processes side by side that leave each other alone: two cores for each."""
        return max(1, min(8, (os.cpu_count() or 1) // 2))


class Records:
    """The records of a stage, in its file as soon as they are known.

    Several stages may share a file: ``{stage: {'records': [...], ...}, ...}``.

    Args:
        path: The file.
        stage: Name of the stage; what an earlier run has of it is left behind.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path, self.stage = path, stage
        self.found: list[dict] = []
        # What the stage itself prints goes to its log.
        self._screen = os.fdopen(os.dup(sys.__stdout__.fileno()), 'w')
        self._write()

    def add(self, **record: object) -> None:
        """Notes a record; ``ok=False`` in it says that a check has failed."""
        self.found.append(record)
        self._write()
        shown = [f'{k} {v}' for k, v in record.items() if isinstance(v, str | int)]
        shown += [f'{k} {v:.4g}' for k, v in record.items() if isinstance(v, float)]
        print('   ', ', '.join(shown)[:150], file=self._screen, flush=True)

    def _write(self) -> None:
        update(self.path, self.stage, records=self.found)


def update(path: Path, stage: str, **found: object) -> None:
    """Writes what is known of a stage into a file, all at once."""
    known = read(path)
    known[stage] = {**known.get(stage, {}), **found}
    new = path.with_suffix('.new')
    new.write_text(json.dumps(known, indent=1) + '\n')
    new.replace(path)


def read(path: Path) -> dict:
    """All stages of a file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def last_line(error: BaseException) -> str:
    """An error in one line, for a record."""
    lines = str(error).strip().splitlines() or ['']
    return f'fails: {type(error).__name__}: {lines[0]}'[:300]


def processor() -> str:
    """The kind of processor."""
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [n.split(':')[1].strip() for n in lines if n.startswith('model name')]
    return f'{(names or [platform.processor()])[0]}, {os.cpu_count()} cores'
