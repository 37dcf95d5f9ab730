"""Tools of this repository, each in a process of its own, and what they logged."""

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from mmengine.registry import DefaultScope

ROOT = Path(__file__).resolve().parents[1]


def process(folder: Path, title: str, threads: int, *command: str | Path) -> dict:
    """Runs a tool in a process of its own; what it took.

    Returns:
        seconds, cpu_seconds (of all its threads) and memory_mib (peak).

    Raises:
        ValueError: It failed; names its log.
    """
    log = folder / f'{title}.log'
    path = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(path), PYTHONWARNINGS='ignore')
    for key in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
        env[key] = str(threads)
    began = time.time()
    with log.open('w') as file:
        child = subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise ValueError(f'{folder.name}: {title} failed; its output is in {log}')
    return dict(
        seconds=time.time() - began,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        memory_mib=usage.ru_maxrss / 1024,
    )


def scalars(folder: Path) -> list[dict]:
    """What the newest run of a work_dir logged, a dict a line."""
    logs = sorted(folder.glob('2*/vis_data/scalars.json'))
    return [json.loads(n) for log in logs[-1:] for n in log.read_text().splitlines()]


def last_metric(folder: Path, metric: str) -> float:
    """The last value of a metric in the newest run of a work_dir."""
    values = [row[metric] for row in scalars(folder) if metric in row]
    if not values:
        raise ValueError(f'{folder}: no {metric} was written')
    return float(values[-1])


def forked(folder: Path, title: str, limit: int, call: Any, *args: Any) -> str:
    """Calls in a process of its own, in ``folder``; the last line of what failed."""
    log = folder / f'{title}.log'
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        _child(folder, log, call, args)
    deadline, status = time.time() + limit, None
    while status is None and time.time() < deadline:
        found, ended = os.waitpid(pid, os.WNOHANG)
        status = ended if found else None
        time.sleep(0.05)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return f'not done in {limit} s'
    if not status:
        return ''
    lines = [x.strip() for x in log.read_text(errors='replace').splitlines()]
    lines = [x for x in lines if x and not x.startswith('(MMMPQ')]
    errors = [x for x in lines if x.startswith('error: ')]
    return (errors or lines or [f'status {status}'])[-1][:300]


def _child(folder: Path, log: Path, call: Any, args: tuple) -> None:
    code = 0
    try:
        os.chdir(folder)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1), os.dup2(file, 2)
        DefaultScope._instance_dict.clear()
        call(*args)
    except SystemExit as error:
        code = 1 if error.code else 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)
