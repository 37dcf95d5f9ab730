"""Time and peak memory of one training step, against the float model's step.

Every variant is built from the same toolbox config. Times are paired: the variants
take turns in one process, and a ratio is the median over the rounds of (variant / float
of the same round); beside it stands the ratio of the fastest rounds, which a busy
machine disturbs less. Memory is measured in one fresh process per variant: on a CPU the
peak of the anonymous resident memory (RssAnon of Linux, read every 2 ms) over what it
was after the imports, with a malloc that gives freed tensors back at once: the model,
its gradients, the optimizer's state, activations and workspaces; on a GPU the peak of
the caching allocator.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib as mpl
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from step_models import (
    GRIDS,
    INPUTS,
    JOINT,
    MIXED,
    QAT,
    STEPS,
    Step,
    build,
    is_detector,
    supernet,
)

import mmmpq  # noqa: F401
from mmmpq.costs import Budget
from mmmpq.search import SearchSpace, cost_tables, most_probable

DTYPES = {'float32': None, 'bfloat16': torch.bfloat16}
# glibc gives freed tensors back at once, so that what is resident is what is alive.
EXACT_MALLOC = dict(
    MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536', MALLOC_ARENA_MAX='1'
)


@dataclass(frozen=True)
class Variant:
    """What a step is measured of; ``candidates`` is 1 but for supernets."""

    variant: str
    step: str
    candidates: int


FLOAT = Variant('float', 'weight', 1)


def variants(model: str, args: argparse.Namespace) -> list[Variant]:
    """The float step and all combinations asked for."""
    found = [FLOAT]
    for name in args.variants:
        if name in MIXED:
            found += [Variant(name, s, m) for m in args.candidates for s in args.steps]
        elif name != QAT or not is_detector(model):
            found.append(Variant(name, 'weight', 1))
    return found


def make_step(model: str, variant: Variant, args: argparse.Namespace) -> Step:
    size = tuple(args.size or INPUTS[model][1])
    common = (size, variant.candidates, args.device, DTYPES[args.dtype])
    return Step(model, variant.variant, variant.step, *common)


def _anonymous() -> float:
    status = Path('/proc/self/status').read_text()
    return int(re.search(r'RssAnon:\s+(\d+) kB', status)[1]) / 1024


def measure_memory(model: str, variant: Variant, args: argparse.Namespace) -> float:
    """Peak of three steps in this process, in MiB."""
    before = peak = _anonymous()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        step = make_step(model, variant, args)
        for _ in range(3):
            step()
    finally:  # or the process would wait for the watcher, and its parent for it
        done.set()
        watcher.join()
    if args.device == 'cuda':
        return torch.cuda.max_memory_allocated() / 2**20
    return peak - before


def memory_of(model: str, variant: Variant, args: argparse.Namespace) -> float:
    """:func:`measure_memory` in a fresh process."""
    command = [sys.executable, __file__, '--models', model, '--memory-of']
    command += map(str, asdict(variant).values())
    command += ['--device', args.device, '--dtype', args.dtype]
    command += ['--threads', str(args.threads)]
    if args.size:
        command += ['--size', *map(str, args.size)]
    env = dict(os.environ, **EXACT_MALLOC)
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    if result.returncode:
        raise RuntimeError(f'{model}, {variant}:\n{result.stderr[-2000:]}')
    return float(result.stdout.split()[-1])


def ratios(rounds: list[dict], variant: Variant, part: str) -> list[float]:
    return [r[variant][part] / r[FLOAT][part] for r in rounds]


def fastest(rounds: list[dict], variant: Variant) -> float:
    """The least disturbed round's seconds: of use on a machine that is not idle."""
    return min(r[variant]['total'] for r in rounds)


def measure(model: str, args: argparse.Namespace) -> list[dict]:
    """One record per variant of one model."""
    todo = variants(model, args)
    memory = {v: memory_of(model, v, args) for v in track(todo, f'{model}: memory')}
    steps = {}
    compiling = {}
    for v in todo:
        steps[v] = make_step(model, v, args)
        compiling[v] = steps[v]()['total']
        for _ in range(args.warmup):
            steps[v]()
    rounds = [
        {v: step() for v, step in steps.items()}
        for _ in track(range(args.repeats), f'{model}: time')
    ]
    size = tuple(args.size or INPUTS[model][1])
    return [
        dict(
            model=model,
            device=args.device_name,
            dtype=args.dtype,
            threads=args.threads,
            input=[size[0], 3, *size[1:]],
            **asdict(v),
            time_ratio=round(median(ratios(rounds, v, 'total')), 3),
            fastest_ratio=round(fastest(rounds, v) / fastest(rounds, FLOAT), 3),
            forward_ratio=round(median(ratios(rounds, v, 'forward')), 3),
            backward_ratio=round(median(ratios(rounds, v, 'backward')), 3),
            memory_ratio=round(memory[v] / memory[FLOAT], 3),
            seconds=round(median(r[v]['total'] for r in rounds), 4),
            first_seconds=round(compiling[v], 3),
            memory_mib=round(memory[v], 1),
        )
        for v in todo
    ]


def measure_search_setup(args: argparse.Namespace) -> list[dict]:
    """Seconds before and after a search: profile, cost tables, the solved policy."""
    model = build('retinanet_r50', supernet('composite', 12))
    start = time.perf_counter()
    space = SearchSpace(model)
    shape = (3, 800, 1333)
    budgets = [
        dict(type=t, limit='W3A3', input_shape=shape) for t in ('BOPs', 'WeightBytes')
    ]
    tables = cost_tables(model, space, [Budget.build(b) for b in budgets])
    profiled = time.perf_counter()
    choice = most_probable(space, tables)
    solved = time.perf_counter()
    policy = space.policy(choice)
    assert all(t.of(policy) <= t.limit for t in tables)
    common = dict(model='retinanet_r50', device=args.device_name, input=[1, *shape])
    common.update(candidates=12, groups=len(space.groups), budgets=2)
    return [
        dict(common, step='profile', seconds=round(profiled - start, 3)),
        dict(common, step='solve', seconds=round(solved - profiled, 3)),
    ]


def show(console: Console, records: list[dict]) -> None:
    """Prints the records as a table."""
    table = Table(title='One step, as multiples of the float step')
    for name in ('model', 'variant', 'step', 'candidates'):
        table.add_column(name)
    kinds = ('time', 'fastest', 'forward', 'backward', 'memory')
    for name in (*kinds, 'seconds', 'MiB'):
        table.add_column(name, justify='right')
    for r in records:
        table.add_row(
            r['model'],
            r.get('variant', ''),
            r['step'],
            str(r['candidates']),
            *(f'{r[f"{k}_ratio"]:.2f}x' if 'time_ratio' in r else '' for k in kinds),
            f'{r["seconds"]:.3f}',
            f'{r["memory_mib"]:.0f}' if 'memory_mib' in r else '',
        )
    console.print(table)


def plot(records: list[dict], path: str) -> None:
    """Time against the number of candidates, or bars where there is one number."""
    mpl.use('Agg')
    from matplotlib import pyplot as plt

    records = [r for r in records if 'time_ratio' in r and r['variant'] != 'float']
    models = list(dict.fromkeys(r['model'] for r in records))
    figure, axes = plt.subplots(
        1, len(models), figsize=(5 * len(models), 3.6), squeeze=False, sharey=True
    )
    for axis, model in zip(axes[0], models, strict=True):
        lines: dict[str, list] = {}
        for r in records:
            if r['model'] == model:
                name = (
                    r['variant']
                    if r['candidates'] == 1
                    else f'{r["variant"]}, {r["step"]}'
                )
                lines.setdefault(name, []).append((r['candidates'], r['time_ratio']))
        for name, points in lines.items():
            axis.plot(*zip(*sorted(points), strict=True), 'o-', label=name)
        axis.axhline(1, color='grey', linewidth=1)
        axis.set(title=model, xlabel='candidates')
    axes[0][0].set_ylabel('time of a step / float step')
    axes[0][-1].legend(fontsize=7)
    figure.savefig(path, bbox_inches='tight', dpi=120)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--models', nargs='*', choices=list(INPUTS), default=['resnet18']
    )
    parser.add_argument(
        '--variants',
        nargs='+',
        default=['W4A4', 'composite'],
        metavar='NAME',
        help=f'{", ".join(map(repr, (*MIXED, QAT)))} or a uniform precision '
        '(default: W4A4 composite)',
    )
    parser.add_argument(
        '--candidates', nargs='+', type=int, choices=[*GRIDS, JOINT], default=[12]
    )
    parser.add_argument(
        '--steps', nargs='+', choices=STEPS, default=['weight', 'architecture']
    )
    parser.add_argument('--size', nargs=3, type=int, metavar=('N', 'H', 'W'))
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--dtype', choices=list(DTYPES), default='float32')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--warmup', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=15)
    parser.add_argument(
        '--search-setup',
        action='store_true',
        help='also profile RetinaNet-R50 at 800x1333 and solve its policy',
    )
    parser.add_argument('--json', metavar='FILE', help='write the records there')
    parser.add_argument('--plot', metavar='FILE', help='draw them there')
    parser.add_argument('--memory-of', nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.device_name = (
        torch.cuda.get_device_name()
        if args.device == 'cuda'
        else f'{os.cpu_count()} cores, CPU'
    )
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        name, step, candidates = args.memory_of
        variant = Variant(name, step, int(candidates))
        print(measure_memory(args.models[0], variant, args))
        return
    records = [record for model in args.models for record in measure(model, args)]
    if args.search_setup:
        records += measure_search_setup(args)
    console = Console()
    show(console if console.is_terminal else Console(width=120), records)
    if args.json:
        Path(args.json).write_text(json.dumps(records, indent=2) + '\n')
    if args.plot:
        plot(records, args.plot)


if __name__ == '__main__':
    main()
