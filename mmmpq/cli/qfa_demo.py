"""Train once, then take any net: an elastic MobileNetV3 on digits, three budgets."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from mmmpq.cli.demo import ROOT, Demo, add_arguments, environment
from mmmpq.fileio import atomic_write
from mmmpq.subnets.evolution import import_pymoo

FLOAT = 'configs/float/mobilenetv3_digits_float.py'
SUPERNET = 'configs/qfa/mobilenetv3_digits.py'
BUDGETS = ('36 MBOPs', '42 MBOPs', '55 MBOPs')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Trains a small supernet, elastic in architecture, resolution and '
        f'bits, on digits and searches it for the best nets of {", ".join(BUDGETS)}. '
        'Minutes on two cores.',
        epilog='example: mmmpq qfa-demo --work-dir work_dirs/qfa_demo',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser, 'qfa_demo', 'digits')
    parser.add_argument(
        '--samples',
        default='400',
        metavar='N',
        help='subnets to measure (default: %(default)s)',
    )
    parser.add_argument(
        '--search-options',
        nargs='+',
        default=[],
        metavar='ARG',
        help='more arguments of mmmpq qfa-search, without their leading dashes: '
        'generations=5',
    )
    return parser.parse_args()


def search(demo: Demo, checkpoint: str, root: dict, args: argparse.Namespace) -> dict:
    """Runs the search with its progress on the terminal; what front.json holds.

    Raises:
        ValueError: It failed.
    """
    folder = demo.work_dir / 'search'
    options = dict(samples=args.samples, batches=20, measure='loss', processes=2)
    options.update(population=200, generations=200, rounds=2)
    options.update(o.split('=', 1) for o in args.search_options)
    began = time.time()
    done = subprocess.run(
        [
            *(sys.executable, '-W', 'ignore', '-m', 'mmmpq', 'qfa-search'),
            *(SUPERNET, checkpoint, '--work-dir', str(folder)),
            *('--budget', *BUDGETS),
            *(f'--{key}={value}' for key, value in options.items()),
            *('--cfg-options', *[f'{key}={value}' for key, value in root.items()]),
        ],
        cwd=ROOT,
        env=environment(),
    )
    if done.returncode:
        raise ValueError('the search failed; what it said is above')
    demo.console.print(f'{"search":<34} {time.time() - began:6.0f} s')
    return json.loads((folder / 'front.json').read_text())


def main() -> None:
    args = parse_args()
    import_pymoo()
    demo = Demo(Path(args.work_dir), args.cfg_options)
    demo.tool('make the digits', 'data', 'digits', '--out', args.data)
    root = {
        f'{split}_dataloader.dataset.data_root': args.data
        for split in ('train', 'val', 'test')
    }
    folder = demo.train('train the largest net in float', FLOAT, 'float', **root)
    checkpoint = (folder / 'last_checkpoint').read_text().strip()
    start = {'load_from': checkpoint, 'custom_hooks.0.teacher.checkpoint': checkpoint}
    folder = demo.train('train the supernet', SUPERNET, 'supernet', **root, **start)
    checkpoint = (folder / 'last_checkpoint').read_text().strip()
    front = search(demo, checkpoint, root, args)
    best = {p['policy']: p for p in front['points']}
    summary = dict(
        metric=front['metric'],
        tau=front['tau'],
        budgets={
            name: {key: best[each['best']][key] for key in ('score', 'costs', 'kind')}
            for name, each in front['budgets'].items()
        },
        seconds=round(time.time() - demo.started, 1),
    )
    path = atomic_write(
        demo.work_dir / 'summary.json', json.dumps(summary, indent=2) + '\n'
    )
    demo.console.print(
        f'the picture: {demo.work_dir}/search/front.png; summary: {path}'
    )
