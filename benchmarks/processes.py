"""Tools of this repository, each in a process of its own, and what they logged."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

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
