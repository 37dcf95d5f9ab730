"""The main job end to end on bundled data: float, search, fine-tune, test, export."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mmmpq.fileio import atomic_write
from mmmpq.policy import Policy
from mmmpq.units import human
from mmmpq.visualization import write_report

PACKAGE = Path(__file__).resolve().parents[1]
# Where configs/ is: in a clone, else in what comes with the package.
ROOT = next(p for p in (PACKAGE.parent, PACKAGE / '.mim') if (p / 'configs').is_dir())
STEP = re.compile(r'Epoch\((train|val|test)\)\s+(?:\[(\d+)\])?\[\s*(\d+)/(\d+)\]')
LOSS = re.compile(r'\bloss: ([\d.]+)')


class Demo:
    """Runs the real tools, one stage after the other, each into a folder of its own."""

    def __init__(self, work_dir: Path, options: list) -> None:
        self.work_dir = work_dir
        self.options = options
        self.console = Console()
        self.started = time.time()

    def tool(self, title: str, *args: str) -> None:
        """Runs a tool; its output goes to a log, its progress to one line here.

        Raises:
            ValueError: The tool failed; names the log.
        """
        log = self.work_dir / 'logs' / f'{title.replace(" ", "_")}.log'
        log.parent.mkdir(parents=True, exist_ok=True)
        began = time.time()
        with self.console.status(title) as status, log.open('w') as file:
            process = subprocess.Popen(
                [sys.executable, '-m', 'mmmpq', *args],
                cwd=ROOT,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for line in process.stdout:
                file.write(line)
                step = STEP.search(line)
                if step:
                    kind, epoch, done, total = step.groups()
                    loss = LOSS.search(line)
                    status.update(
                        f'{title}: {kind} '
                        + (f'epoch {epoch}, ' if epoch else '')
                        + f'{done}/{total}'
                        + (f', loss {loss[1]}' if loss else '')
                    )
        if process.wait():
            raise ValueError(f'{title} failed; the whole output is in {log}')
        self.console.print(f'{title:<34} {time.time() - began:6.0f} s')

    def train(self, title: str, config: str, name: str, **options: object) -> Path:
        """Trains a config into ``<work_dir>/<name>`` and returns that folder."""
        folder = self.work_dir / name
        self.tool(
            title,
            'train',
            config,
            '--work-dir',
            str(folder),
            '--cfg-options',
            *[f'{key}={value}' for key, value in options.items()],
            'default_hooks.logger.interval=5',
            *self.options,
        )
        return folder

    def test(self, title: str, config: str, folder: Path, **options: object) -> float:
        """mAP of the last checkpoint in ``folder``, from ``mmmpq test``."""
        out = folder / 'metrics.json'
        self.tool(
            title,
            'test',
            config,
            (folder / 'last_checkpoint').read_text().strip(),
            '--work-dir',
            str(folder / 'test'),
            '--out',
            str(out),
            '--out-item',
            'metrics',
            '--cfg-options',
            *[f'{key}={value}' for key, value in options.items()],
            'randomness.seed=0',
        )
        # A net that finds no box at all has no mAP in mmdet's results.
        return json.loads(out.read_text()).get('coco/bbox_mAP', 0.0)

    def export(self, title: str, config: str, folder: Path, policy: Path) -> Path:
        """The packed file of the last checkpoint in ``folder``; sizes.json beside."""
        file = self.work_dir / 'exported' / 'searched.safetensors'
        self.tool(
            title,
            'export',
            config,
            (folder / 'last_checkpoint').read_text().strip(),
            *('--format', 'packed', '--out', str(file)),
            *('--cfg-options', f'model.quant.policy={policy}'),
        )
        return file


def environment() -> dict:
    """Threads that wait sleep: where they spin, a busy machine is many times slower."""
    return dict(os.environ, OMP_WAIT_POLICY='PASSIVE', PYTHONUNBUFFERED='1')


def add_arguments(parser: argparse.ArgumentParser, name: str, data: str) -> None:
    """Add the flags that all demos share."""
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        default=f'work_dirs/{name}',
        help='where everything goes (default: %(default)s)',
    )
    parser.add_argument(
        '--data',
        metavar='DIR',
        default=f'data/{data}',
        help=f'where the {data} are made (default: %(default)s)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='more overrides for all trainings, such as train_cfg.max_epochs=1',
    )


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Searches, fine-tunes, tests, exports and reports a small '
        'RetinaNet on synthetic shapes, inside the budget W3A3. Minutes on two cores.',
        epilog='example: mmmpq demo --work-dir work_dirs/demo',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser, 'demo', 'shapes')
    parser.add_argument(
        '--train-images', type=int, default=1000, metavar='N', help='(default: 1000)'
    )
    parser.add_argument(
        '--val-images', type=int, default=200, metavar='N', help='(default: 200)'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    work_dir = Path(args.work_dir)
    demo = Demo(work_dir, args.cfg_options)
    console = demo.console
    data = Path(args.data)
    demo.tool(
        'make the shapes',
        'data',
        'shapes',
        '--out',
        str(data),
        '--train',
        str(args.train_images),
        '--val',
        str(args.val_images),
    )
    root = {
        f'{split}_dataloader.dataset.data_root': f'{data}/'
        for split in ('train', 'val', 'test')
    }
    val = f'{data}/annotations/instances_val.json'
    root.update({'val_evaluator.ann_file': val, 'test_evaluator.ann_file': val})

    float_config = 'configs/float/retinanet_shapes_float.py'
    folder = demo.train('train the float net', float_config, 'float', **root)
    float_map = demo.test('test the float net', float_config, folder, **root)
    checkpoint = (folder / 'last_checkpoint').read_text().strip()

    search = demo.train(
        'search, budget W3A3',
        'configs/bpnas/retinanet_shapes.py',
        'search',
        **root,
        load_from=checkpoint,
    )
    policy_file = search / 'policy.json'
    finetune = 'configs/bpnas/retinanet_shapes_finetune.py'
    maps = {}
    for name, policy, start in (
        ('searched', policy_file, search / 'searched.pth'),
        ('uniform', 'W3A3', checkpoint),
    ):
        options = {**root, 'model.quant.policy': policy, 'load_from': start}
        folder = demo.train(f'fine-tune the {name} net', finetune, name, **options)
        maps[name] = demo.test(f'test the {name} net', finetune, folder, **options)
    packed = demo.export(
        'export the searched net', finetune, work_dir / 'searched', policy_file
    )
    sizes = json.loads((packed.parent / 'sizes.json').read_text())

    summary = dict(
        summarise(search, float_map, maps),
        float_checkpoint_bytes=Path(checkpoint).stat().st_size,
        float_state_bytes=sizes['total']['float'],
        packed_file_bytes=sizes['total']['packed'],
        seconds=round(time.time() - demo.started, 1),
    )
    atomic_write(work_dir / 'summary.json', json.dumps(summary, indent=2) + '\n')
    costs = Policy.load(policy_file).meta['costs']
    rows = [
        dict(name='float', metric=float_map),
        dict(name='uniform W3A3', metric=maps['uniform']),
        dict(name='searched', metric=maps['searched']),
    ]
    for row, kind in zip(rows, ('float', 'uniform', 'searched'), strict=True):
        row.update({k: costs[kind][k] for k in ('bops', 'weight_bytes')})
    rows[-1]['expected_bops'] = summary['expected_bops']
    page = write_report(search, rows, work_dir / 'report', sizes)

    table = Table('', 'mAP', 'GBOPs', '', 'weight bytes', '')
    for row in rows:
        table.add_row(
            row['name'],
            f'{row["metric"]:.3f}',
            f'{row["bops"] / 1e9:.2f}',
            f'{rows[0]["bops"] / row["bops"]:.1f}x',
            f'{row["weight_bytes"]:,.0f}',
            f'{rows[0]["weight_bytes"] / row["weight_bytes"]:.1f}x',
        )
    console.print(table)
    share = summary['searched_bops'] / summary['budget_bops']
    console.print(f'the found net spends {share:.1%} of its budget')
    summary_file = work_dir / 'summary.json'
    console.print(f'report: {page}\nsummary: {summary_file}', soft_wrap=True)
    size, plain, whole = (
        human(summary[key], 'B')
        for key in ('packed_file_bytes', 'float_state_bytes', 'float_checkpoint_bytes')
    )
    times = summary['float_state_bytes'] / summary['packed_file_bytes']
    console.print(
        f'packed file: {packed}, {size}: {times:.1f}x smaller than the {plain} of the '
        f'float net ({whole} as a checkpoint, with its optimizer)',
        soft_wrap=True,
    )


def summarise(search: Path, float_map: float, maps: dict) -> dict:
    """Accuracies and costs for ``summary.json``."""
    policy = Policy.load(search / 'policy.json')
    budget = policy.meta['budgets'][0]
    costs = policy.meta['costs']
    records = (search / 'search_history.jsonl').read_text().splitlines()
    return dict(
        float_map=float_map,
        uniform_map=maps['uniform'],
        searched_map=maps['searched'],
        budget_bops=budget['limit'],
        uniform_bops=costs['uniform']['bops'],
        searched_bops=budget['cost'],
        expected_bops=json.loads(records[-1])['expected'][0],
        searched_weight_bytes=costs['searched']['weight_bytes'],
        float_weight_bytes=costs['float']['weight_bytes'],
        feasible=budget['cost'] <= budget['limit'],
    )
