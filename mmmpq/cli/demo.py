"""The main job end to end on bundled data: float, search, fine-tune, test, export."""

import json
import time
from pathlib import Path

from mmengine.config import Config

from mmmpq.cli.flags.demo import parse_args
from mmmpq.cli.run import run, show
from mmmpq.cli.stages import Stages, last_checkpoint
from mmmpq.fileio import atomic_write
from mmmpq.policy import Policy
from mmmpq.units import human
from mmmpq.visualization.progress import terminal

PACKAGE = Path(__file__).resolve().parents[1]
# Where configs/ is: in a clone, else in what comes with the package.
ROOT = next(p for p in (PACKAGE.parent, PACKAGE / '.mim') if (p / 'configs').is_dir())


def main() -> None:
    args = parse_args()
    work_dir, data = Path(args.work_dir), Path(args.data)
    console = terminal()
    # Nets this small are trained faster by one thread than by two.
    stages = Stages(work_dir, console, jobs=2)
    shapes = stages(
        'make the shapes',
        'data shapes',
        *('--out', data, '--train', args.train_images, '--val', args.val_images),
    )
    root = {
        f'{split}_dataloader.dataset.data_root': f'{data}/'
        for split in ('train', 'val', 'test')
    }
    val = f'{data}/annotations/instances_val.json'
    root.update({'val_evaluator.ann_file': val, 'test_evaluator.ann_file': val})
    options = {**root, 'default_hooks.logger.interval': 5, **(args.cfg_options or {})}
    stages(
        'train the float net',
        'train',
        ROOT / 'configs/float/retinanet_shapes_float.py',
        *('--work-dir', work_dir / 'float'),
        *('--cfg-options', *(f'{key}={value}' for key, value in options.items())),
        after=[shapes],
    )
    checkpoint = last_checkpoint(work_dir / 'float')

    def config(name: str) -> Config:
        cfg = Config.fromfile(ROOT / f'configs/bpnas/{name}.py')
        cfg.merge_from_dict(options)
        return cfg

    search = config('retinanet_shapes')
    search.load_from = checkpoint
    results = run(stages, search, config('retinanet_shapes_finetune'), ['uniform'])
    show(results, console)

    summary = dict(
        summarise(work_dir / 'search', results['rows']),
        float_checkpoint_bytes=Path(checkpoint).stat().st_size,
        float_state_bytes=results['sizes']['float'],
        packed_file_bytes=results['sizes']['packed'],
        seconds=round(time.time() - stages.started, 1),
    )
    atomic_write(work_dir / 'summary.json', json.dumps(summary, indent=2) + '\n')
    share = summary['searched_bops'] / summary['budget_bops']
    console.print(f'the found net spends {share:.1%} of its budget')
    summary_file = work_dir / 'summary.json'
    console.print(
        f'report: {results["report"]}\nsummary: {summary_file}', soft_wrap=True
    )
    size, plain, whole = (
        human(summary[key], 'B')
        for key in ('packed_file_bytes', 'float_state_bytes', 'float_checkpoint_bytes')
    )
    times = summary['float_state_bytes'] / summary['packed_file_bytes']
    console.print(
        f'packed file: {results["packed"]}, {size}: {times:.1f}x smaller than the '
        f'{plain} of the float net ({whole} as a checkpoint, with its optimizer)',
        soft_wrap=True,
    )


def summarise(search: Path, rows: list[dict]) -> dict:
    """Accuracies and costs for ``summary.json``."""
    budget = Policy.load(search / 'policy.json').meta['budgets'][0]
    records = (search / 'search_history.jsonl').read_text().splitlines()
    of = {row['name'].partition(' ')[0]: row for row in rows}
    return dict(
        {f'{name}_map': row['metric'] for name, row in of.items()},
        budget_bops=budget['limit'],
        uniform_bops=of['uniform']['bops'],
        searched_bops=budget['cost'],
        expected_bops=json.loads(records[-1])['expected'][0],
        searched_weight_bytes=of['searched']['weight_bytes'],
        float_weight_bytes=of['float']['weight_bytes'],
        feasible=budget['cost'] <= budget['limit'],
    )
