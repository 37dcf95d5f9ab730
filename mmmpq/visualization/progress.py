"""A progress bar on the terminal."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


@contextlib.contextmanager
def progress_bar(
    console: Console, title: str, total: int
) -> Iterator[Callable[..., None]]:
    """A function ``(done, total, note)`` that moves a bar on the terminal."""
    progress = Progress(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn('{task.fields[note]}'),
        console=console,
    )
    with progress:
        task = progress.add_task(title, total=total, note='')
        yield lambda done, total=None, note='': progress.update(
            task, completed=done, note=note
        )
