"""Verbs run as processes, each once."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn

from mmmpq.fileio import atomic_write, strict_json

STEP = re.compile(r'Epoch\((train|val|test)\)\s+(?:\[(\d+)\])?\[\s*(\d+)/(\d+)\]')
LOSS = re.compile(r'\bloss: ([\d.]+)')


class Stages:
    """Runs verbs of ``mmmpq`` as processes, each with a log and a line on the screen.

    A stage that has ended well is noted in ``<work_dir>/stages.json`` and skipped when
    it is asked for again with the same arguments, after the same stages. A training
    that was killed goes on from its last checkpoint.

    Args:
        work_dir: Where logs and notes go.
        console: Where progress is shown.
        jobs: Stages that :meth:`together` may run at once; they share the cores.
    """

    def __init__(self, work_dir: Path, console: Console, jobs: int = 1) -> None:
        self.work_dir, self.console, self.jobs = work_dir, console, jobs
        self.started = time.time()
        columns = SpinnerColumn(), TextColumn('{task.description}', markup=False)
        self._running = Progress(*columns, console=console, transient=True)
        self._lock = RLock()
        self.file = work_dir / 'stages.json'
        self.done = self._noted()
        self._failed = ''

    def __call__(
        self, title: str, verb: str, *args: object, after: Sequence[str] = ()
    ) -> str:
        """Runs one verb; a stage's key, for the stages that build on it.

        Args:
            title: Its name, on the screen and of its log.
            verb: Such as 'train'.
            *args: Its arguments; of a config among them, given as a Path, the text
                counts.
            after: Keys of the stages whose results it reads.

        Raises:
            ValueError: It failed; names the log. Or one beside it did.
        """
        if self._failed:
            raise ValueError(f'{title} is not begun: {self._failed}')
        words = [*verb.split(), *map(str, args)]
        files = [p for p in args if isinstance(p, Path) and p.suffix == '.py']
        configs = [p.read_text() for p in files]
        key = hashlib.sha256(json.dumps([words, configs, *after]).encode())
        key = key.hexdigest()[:16]
        if self.done.get(title, {}).get('key') == key:
            self.console.print(f'{title:<34}   done before')
            return key
        if verb == 'train' and self.done.get(f'{title} (begun)') == key:
            words.append('--resume')
        elif verb == 'train':
            if '--work-dir' in words:  # a checkpoint that is there is another's
                folder = Path(words[words.index('--work-dir') + 1])
                (folder / 'last_checkpoint').unlink(missing_ok=True)
            self._note(f'{title} (begun)', key)
        try:
            seconds = self._run(title, words)
        except ValueError as error:
            self._failed = str(error)
            raise
        self._note(title, dict(key=key, seconds=round(seconds, 1)))
        self.console.print(f'{title:<34} {seconds:6.0f} s')
        return key

    def together(self, *chains: Callable[[], object]) -> None:
        """Calls functions that run stages, ``jobs`` of them at once.

        Where one fails the stages that run end first, and no other begins.
        """
        with ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(chain) for chain in chains]
        for future in futures:
            future.result()

    @contextmanager
    def _shown(self, title: str) -> Iterator[Callable[[str], None]]:
        """A line on the screen while a stage runs; takes what it is to say."""
        with self._lock:
            self._running.start()
            task = self._running.add_task(title)
        try:
            yield lambda text: self._running.update(task, description=text)
        finally:
            with self._lock:
                self._running.remove_task(task)
                if not self._running.tasks:
                    self._running.stop()

    def _run(self, title: str, words: Sequence[str]) -> float:
        log = self.work_dir / 'logs' / f'{title.replace(" ", "_")}.log'
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.time()
        with self._shown(title) as say, log.open('w') as file:
            process = subprocess.Popen(
                [sys.executable, '-m', 'mmmpq', *words],
                env=environment(self.jobs),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for line in process.stdout:
                file.write(line)
                if step := STEP.search(line):
                    kind, epoch, done, total = step.groups()
                    loss = LOSS.search(line)
                    say(
                        f'{title}: {kind} '
                        + (f'epoch {epoch}, ' if epoch else '')
                        + f'{done}/{total}'
                        + (f', loss {loss[1]}' if loss else '')
                    )
        if process.wait():
            last = log.read_text().strip().splitlines()[-1:]
            raise ValueError(
                f'{title} failed ({" ".join(last)}); the whole output is in {log}'
            )
        return time.time() - began

    def _noted(self) -> dict:
        if not self.file.exists():
            return {}
        try:
            return strict_json(self.file.read_text())
        except ValueError as error:
            raise ValueError(
                f'{self.file} is damaged: it is no JSON ({error}); remove it to have '
                'every stage run again'
            ) from error

    def _note(self, title: str, value: object) -> None:
        with self._lock:
            self.done[title] = value
            atomic_write(self.file, json.dumps(self.done, indent=2) + '\n')


def environment(jobs: int = 1) -> dict[str, str]:
    """Of a stage among ``jobs`` of them.

    Threads that wait sleep: where they spin, a busy machine is many times slower.
    """
    env = dict(os.environ, OMP_WAIT_POLICY='PASSIVE', PYTHONUNBUFFERED='1')
    env['PYTHONPATH'] = os.pathsep.join(p for p in sys.path if p)
    if jobs > 1:
        env.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // jobs)))
    return env


def last_checkpoint(folder: Path) -> str:
    """The last checkpoint of a training in ``folder``."""
    return (folder / 'last_checkpoint').read_text().strip()


def identity(path: str | Path) -> str:
    """A file as an input of a stage: another one whenever it was written anew."""
    if '://' in str(path):
        return str(path)
    stat = Path(path).stat()
    return f'{path} {stat.st_size} {stat.st_mtime_ns}'
