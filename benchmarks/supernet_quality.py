"""One supernet for every policy: BatchQuant against learned ranges, and nets alone.

For each seed three kinds of runs from the same float checkpoint, for the same number of
steps: the supernet of configs/qfa, the same one with learned ranges (LSQ) of the
activations, and for each width a net trained alone at it. A supernet's subnets are
calibrated and not trained any more; of the elastic net they are the largest ones, and
no net is trained alone. One JSON file per run under --work-dir: what is
there already is not run again.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib as mpl
from mmengine.config import Config
from processes import ROOT, process, scalars
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table

from mmmpq.engine.launch import run
from mmmpq.fileio import atomic_write

# Name -> config in configs/qfa, metric, epochs of a supernet there.
SETS = {
    'digits': ('resnet_digits', 'accuracy/top1', 20),
    'elastic': ('mobilenetv3_digits', 'accuracy/top1', 30),
    'shapes': ('retinanet_shapes', 'coco/bbox_mAP', 3),
}
WIDTHS = ('W2A2', 'W3A3', 'W4A4')
SUPERNETS = {
    'BatchQuant': [],
    'learned ranges': ['model.quant.a_quantizer.type=mmmpq.LSQQuantizer'],
}
KINDS = (*SUPERNETS, *WIDTHS)
EPILOG = """examples
  benchmarks/supernet_quality.py --sets digits --jobs 2
  benchmarks/supernet_quality.py --jobs 0                      (table and plots alone)
"""


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--sets', nargs='+', choices=SETS, default=list(SETS))
    parser.add_argument(
        '--kinds', nargs='+', choices=KINDS, default=KINDS, help='(default: all)'
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument(
        '--threads', type=int, default=1, help='of each process (default: 1)'
    )
    parser.add_argument(
        '--jobs', type=int, default=1, help='runs side by side (default: 1; 0: none)'
    )
    parser.add_argument(
        '--work-dir', type=Path, default=ROOT / 'work_dirs/supernet_quality'
    )
    parser.add_argument(
        '--out', type=Path, default=ROOT / 'benchmarks/results/supernet_quality'
    )
    args = parser.parse_args(argv)
    args.work_dir, args.out = args.work_dir.resolve(), args.out.resolve()
    return args


def folder_of(name: str, kind: str, seed: int, args: argparse.Namespace) -> Path:
    """Of one training; its record lies beside it, with the suffix .json."""
    return args.work_dir / f'{name}-{kind.replace(" ", "_")}-{seed}'


def execute(name: str, kind: str, seed: int, args: argparse.Namespace) -> dict:
    """One training; returns and writes its record."""
    folder = folder_of(name, kind, seed, args)
    folder.mkdir(parents=True, exist_ok=True)
    config, metric, epochs = SETS[name]
    options = ['default_hooks.logger.interval=1']
    if kind in SUPERNETS:  # it keeps its checkpoint, to be searched
        options += SUPERNETS[kind]
    else:
        options += ['default_hooks.checkpoint.interval=-1']
        options += ['default_hooks.checkpoint.save_last=False']
        supernet = Config.fromfile(ROOT / f'configs/qfa/{config}.py')
        options += [f'model.quant.policy={kind}', f'load_from={supernet.load_from}']
        options += [f'optim_wrapper.optimizer.lr={supernet.optim_wrapper.optimizer.lr}']
        options += [
            f'train_cfg.max_epochs={epochs}',
            f'train_cfg.val_interval={epochs}',
        ]
        config += '_subnet'
    spent = process(
        *(folder, 'train', args.threads, 'tools/train.py', f'configs/qfa/{config}.py'),
        *('--work-dir', folder / 'run', '--seed', seed, '--cfg-options', *options),
    )
    rows = scalars(folder / 'run')
    last = {k: v for row in rows for k, v in row.items() if k.endswith(metric)}
    widths = WIDTHS if kind in SUPERNETS else (kind,)
    found = {w: last.get(f'{w}/{metric}', last[metric]) for w in widths}
    if f'smallest/{metric}' in last:
        found['smallest'] = last[f'smallest/{metric}']
    record = dict(
        set=name,
        kind=kind,
        seed=seed,
        metric=metric,
        accuracy=found,
        loss=[row['loss'] for row in rows if 'loss' in row],
        seconds=spent['seconds'],
        cpu_seconds=spent['cpu_seconds'],
        memory_mib=spent['memory_mib'],
    )
    atomic_write(folder.with_suffix('.json'), json.dumps(record) + '\n')
    return record


def summary(records: list[dict]) -> list[dict]:
    """A row for each set, kind and width: mean and spread over the seeds."""
    rows = []
    kinds = dict.fromkeys((r['set'], r['kind']) for r in records)
    for name, kind in kinds:
        same = [r for r in records if (r['set'], r['kind']) == (name, kind)]
        for width in same[0]['accuracy']:
            values = [r['accuracy'][width] for r in same]
            rows.append(
                dict(
                    set=name,
                    kind=kind if kind in SUPERNETS else 'alone',
                    width=width,
                    runs=len(values),
                    mean=mean(values),
                    spread=stdev(values) if len(values) > 1 else 0.0,
                    cpu_seconds=mean(r['cpu_seconds'] for r in same),
                )
            )
    order = [*SUPERNETS, 'alone']
    return sorted(rows, key=lambda r: (r['set'], order.index(r['kind']), r['width']))


def write_results(records: list[dict], out: Path, console: Console) -> None:
    """runs.csv, table.md and loss.png."""
    out.mkdir(parents=True, exist_ok=True)
    lines = ['set,kind,seed,width,accuracy,seconds,cpu_seconds,memory_mib']
    lines += [
        f'{r["set"]},{r["kind"]},{r["seed"]},{w},{a:.4f},{r["seconds"]:.0f},'
        f'{r["cpu_seconds"]:.0f},{r["memory_mib"]:.0f}'
        for r in records
        for w, a in r['accuracy'].items()
    ]
    atomic_write(out / 'runs.csv', '\n'.join(lines) + '\n')
    head = ('set', 'kind', 'width', 'runs', 'mean', 'spread', 'CPU seconds a training')
    table = Table(*head)
    text = ['| ' + ' | '.join(head) + ' |', '| --- ' * len(head) + '|']
    for r in summary(records):
        digits = 2 if r['mean'] > 1 else 3
        cells = [r['set'], r['kind'], r['width'], str(r['runs'])]
        cells += [f'{r["mean"]:.{digits}f}', f'{r["spread"]:.{digits}f}']
        cells += [f'{r["cpu_seconds"]:.0f}']
        table.add_row(*cells)
        text.append('| ' + ' | '.join(cells) + ' |')
    console.print(table)
    atomic_write(out / 'table.md', '\n'.join(text) + '\n')
    plot(records, out / 'loss.png')


def plot(records: list[dict], path: Path) -> None:
    """The losses of both supernets, a line a seed, as means of 10 iterations."""
    mpl.use('Agg')
    from matplotlib import pyplot as plt

    sets = list(dict.fromkeys(r['set'] for r in records))
    figure, axes = plt.subplots(
        1, len(sets), figsize=(5 * len(sets), 3.4), squeeze=False
    )
    for axis, name in zip(axes[0], sets, strict=True):
        for colour, kind in zip(('tab:blue', 'tab:orange'), SUPERNETS, strict=True):
            losses = [
                r['loss'] for r in records if (r['set'], r['kind']) == (name, kind)
            ]
            for i, loss in enumerate(losses):
                steps = range(0, len(loss), 10)
                smooth = [mean(loss[s : s + 10]) for s in steps]
                label = kind if i == 0 else None
                axis.plot(steps, smooth, color=colour, linewidth=1, label=label)
        axis.set(title=name, xlabel='iteration', ylabel='loss', yscale='log')
        axis.legend()
    figure.savefig(path, bbox_inches='tight', dpi=120)


def main() -> None:
    args = parse_args()
    console = Console()
    todo = [
        each
        for each in product(args.sets, args.kinds, args.seeds)
        if (each[0] != 'elastic' or each[1] in SUPERNETS)
        and not folder_of(*each, args).with_suffix('.json').is_file()
    ]
    failures = []
    if args.jobs and todo:
        columns = (
            *Progress.get_default_columns(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with (
            Progress(*columns, console=console) as progress,
            ThreadPoolExecutor(args.jobs) as pool,
        ):
            task = progress.add_task('trainings', total=len(todo))
            futures = {pool.submit(execute, *each, args): each for each in todo}
            for future in as_completed(futures):
                progress.advance(task)
                try:
                    record = future.result()
                except ValueError as error:
                    failures.append(str(error))
                else:
                    progress.console.print(
                        *futures[future], record['accuracy'], markup=False
                    )
    files = sorted(args.work_dir.glob('*.json'))
    records = [json.loads(path.read_text()) for path in files]
    if records:
        write_results(records, args.out, console)
    if failures:
        raise ValueError('\n'.join(failures))


if __name__ == '__main__':
    run(main)
