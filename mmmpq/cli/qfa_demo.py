"""Train once, then take any net: an elastic MobileNetV3 on digits, three budgets."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from mmmpq.cli.demo import ROOT
from mmmpq.cli.flags.qfa_demo import BUDGETS, parse_args
from mmmpq.cli.stages import Stages, environment, last_checkpoint
from mmmpq.fileio import atomic_write
from mmmpq.subnets.evolution import import_pymoo
from mmmpq.visualization.progress import terminal

FLOAT = ROOT / 'configs/float/mobilenetv3_digits_float.py'
SUPERNET = ROOT / 'configs/qfa/mobilenetv3_digits.py'


def search(
    work_dir: Path, checkpoint: str, root: dict, args: argparse.Namespace
) -> dict:
    """Runs the search with its progress on the terminal; what front.json holds.

    Raises:
        ValueError: It failed.
    """
    folder = work_dir / 'search'
    options = dict(samples=args.samples, batches=20, measure='loss', processes=2)
    options.update(population=200, generations=200, rounds=2)
    options.update(o.split('=', 1) for o in args.search_options)
    process = subprocess.run(
        [
            *(sys.executable, '-W', 'ignore', '-m', 'mmmpq', 'qfa-search'),
            *(str(SUPERNET), checkpoint, '--work-dir', str(folder)),
            *('--budget', *BUDGETS),
            *(f'--{key}={value}' for key, value in options.items()),
            *('--cfg-options', *[f'{key}={value}' for key, value in root.items()]),
        ],
        env=environment(),
    )
    if process.returncode:
        raise ValueError('the search failed; what it said is above')
    return json.loads((folder / 'front.json').read_text())


def main() -> None:
    args = parse_args()
    import_pymoo()
    work_dir, console = Path(args.work_dir), terminal()
    stages = Stages(work_dir, console)
    keys = [stages('make the digits', 'data digits', '--out', args.data)]
    root = {
        f'{split}_dataloader.dataset.data_root': args.data
        for split in ('train', 'val', 'test')
    }

    def train(title: str, config: Path, name: str, **start: str) -> str:
        options = {**root, **start, 'default_hooks.logger.interval': 5}
        options |= args.cfg_options or {}
        key = stages(
            title,
            'train',
            *(config, '--work-dir', work_dir / name, '--cfg-options'),
            *(f'{option}={value}' for option, value in options.items()),
            after=keys,
        )
        keys.append(key)
        return last_checkpoint(work_dir / name)

    largest = train('train the largest net in float', FLOAT, 'float')
    start = {'load_from': largest, 'custom_hooks.0.teacher.checkpoint': largest}
    checkpoint = train('train the supernet', SUPERNET, 'supernet', **start)
    front = search(work_dir, checkpoint, root, args)
    best = {p['policy']: p for p in front['points']}
    summary = dict(
        metric=front['metric'],
        tau=front['tau'],
        budgets={
            name: {key: best[each['best']][key] for key in ('score', 'costs', 'kind')}
            for name, each in front['budgets'].items()
        },
        seconds=round(time.time() - stages.started, 1),
    )
    path = atomic_write(work_dir / 'summary.json', json.dumps(summary, indent=2) + '\n')
    console.print(f'the picture: {work_dir}/search/front.png; summary: {path}')
