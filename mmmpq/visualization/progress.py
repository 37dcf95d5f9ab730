"""The terminal that tools write to, and a progress bar on it."""

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


def terminal(width: int | None = None, stderr: bool = False) -> Console:
    """A console to which square brackets in paths and names mean nothing.

    Args:
        width: Where the output goes to a file.
        stderr: Whether it writes there.
    """
    console = Console(stderr=stderr, markup=False)
    return (
        console
        if console.is_terminal
        else Console(stderr=stderr, markup=False, width=width)
    )


@contextlib.contextmanager
def progress_bar(
    console: Console, title: str, total: int
) -> Iterator[Callable[..., None]]:
    """A function ``(done, total, note)`` that moves a bar on the terminal."""
    progress = Progress(
        TextColumn(title, markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn('{task.fields[note]}', markup=False),
        console=console,
    )
    with progress:
        task = progress.add_task(title, total=total, note='')
        yield lambda done, total=None, note='': progress.update(
            task, completed=done, total=total, note=note
        )
