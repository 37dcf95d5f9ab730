"""From a float net to a net that fits: search, fine-tune, test, export and report."""

import argparse
import copy
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from mmmpq.cli.flags.run import RUNGS, parse_args
from mmmpq.cli.stages import Stages, identity, last_checkpoint
from mmmpq.engine.launch import (
    load_config,
    search_hooks,
)
from mmmpq.engine.lr_schedule import fit_schedule
from mmmpq.engine.search_config import search_budgets
from mmmpq.fileio import atomic_write, check_file
from mmmpq.policy import Policy
from mmmpq.post_training.front import metric_of
from mmmpq.visualization import write_report
from mmmpq.visualization.progress import terminal

# What each rung makes, as folders and stages are named.
NETS = dict(zip(RUNGS, ('ptq', 'ptq_finetuned', 'searched'), strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    console = terminal(120)
    work_dir = Path(args.work_dir)
    search = load_config(args)
    finetune = finetune_config(args)
    search_budgets(search, args.budget)
    for name, cfg in (('search', search), ('fine-tuning', finetune)):
        for note in fit_schedule(cfg):
            console.print(f'{name}: {note}', soft_wrap=True)
    stages = Stages(work_dir, console, args.jobs)
    results = run(stages, search, finetune, args.compare, args.seed, args.rungs)
    show(results, console)
    for title, key in (('report', 'report'), ('packed file', 'packed')):
        if key in results:
            console.print(f'{title}: {results[key]}', soft_wrap=True)


def finetune_config(args: argparse.Namespace) -> Config:
    """The config of the fine-tuning, whose policy and start are still to be filled in.

    Raises:
        FileNotFoundError: ``--finetune`` names no file.
    """
    beside = Path(args.config).with_name(f'{Path(args.config).stem}_finetune.py')
    path = args.finetune or (str(beside) if beside.is_file() else args.config)
    cfg = load_config(argparse.Namespace(**{**vars(args), 'config': path}))
    if path == args.config:
        cfg.custom_hooks = [
            *(h for h in cfg.get('custom_hooks') or () if h not in search_hooks(cfg)),
            dict(type='mmmpq.CalibrationHook'),
        ]
    cfg.pop('work_dir', None)
    return cfg


def run(
    stages: Stages,
    search: Config,
    finetune: Config,
    compare: Sequence[str] = (),
    seed: int | None = None,
    rungs: Sequence[str] = ('search',),
) -> dict[str, Any]:
    """Runs all stages.

    Args:
        stages: Where they run.
        search: Config of the search; its ``load_from`` is the float net.
        finetune: Config of the fine-tuning, without policy and ``load_from``.
        compare: Methods of ``mmmpq baseline`` to hold against the search.
        seed: Of search and fine-tuning.
        rungs: Of :data:`.flags.run.RUNGS`.

    Returns:
        ``rows`` (a net each: name, metric, bops, weight_bytes, seconds), ``metric``
        (its name), ``report`` (of a search), ``packed``, ``policy`` (paths of the
        last rung), ``sizes``, ``seconds`` of the stages.

    Raises:
        ValueError: The config is of no search or names no float checkpoint; a stage
            failed.
    """
    work_dir = stages.work_dir
    if not search_hooks(search) or 'quant' not in search.model:
        raise ValueError(
            'CONFIG: found no mmmpq.SearchHook among its custom_hooks, or no quant in '
            'its model; accepted is the config of a search'
        )
    start = search.get('load_from')
    if not start:
        raise ValueError(
            'load_from: the config of the search names no float checkpoint; give one '
            'with --cfg-options load_from=FILE'
        )
    check_file(start, 'load_from')
    seeded = [] if seed is None else ['--seed', seed]
    begin = [identity(start)]
    config = _written(search, work_dir / 'configs' / 'search.py')
    folder = work_dir / 'search'
    post = work_dir / 'ptq'
    nets = [NETS[rung] for rung in RUNGS if rung in rungs]
    last = nets[-1]
    if nets[0] == 'ptq_finetuned':
        nets.insert(0, 'ptq')
    policies = {m: work_dir / f'policy_{m}' / 'policy.json' for m in compare}
    policies |= {
        net: (folder if net == 'searched' else post) / 'policy.json' for net in nets
    }
    packed = work_dir / 'exported' / f'{last}.safetensors'
    if last == 'ptq':
        packed = post / 'net.safetensors'
    metrics: dict[str, dict[str, float]] = {}

    def test(name: str, config: Path, checkpoint: str, *after: str) -> None:
        out = work_dir / 'metrics' / f'{name}.json'
        stages(
            f'test {name}',
            'test',
            *(config, checkpoint, '--work-dir', work_dir / 'tests' / name),
            *('--out', out, '--out-item', 'metrics'),
            *('--cfg-options', 'randomness.seed=0'),
            after=after,
        )
        metrics[name] = json.loads(out.read_text())

    def finetuned(name: str, weights: Any, key: str) -> None:
        """Fine-tunes and tests the net of a policy, and packs that of the last rung."""
        cfg = copy.deepcopy(finetune)
        cfg.model.quant.policy = str(policies[name])
        cfg.load_from = str(weights)
        path = _written(cfg, work_dir / 'configs' / f'{name}.py')
        args = (path, '--work-dir', work_dir / name, *seeded)
        trained = stages(f'fine-tune {name}', 'train', *args, after=[key])
        checkpoint = last_checkpoint(work_dir / name)
        test(name, path, checkpoint, trained)
        if name == last:
            args = (path, checkpoint, '--format', 'packed', '--out', packed)
            stages(f'export {name}', 'export', *args, after=[trained])

    def searched() -> None:
        args = (config, '--work-dir', folder, *seeded)
        key = stages('search', 'train', *args, after=begin)
        finetuned('searched', folder / 'searched.pth', key)

    def others() -> None:
        if 'ptq' in nets:
            args = (config, start, '--work-dir', post, *seeded)
            key = stages('ptq', 'ptq', *args, after=begin)
            metrics['ptq'] = json.loads((post / 'ptq.json').read_text())['metrics']
        if 'ptq_finetuned' in nets:
            finetuned('ptq_finetuned', start, key)
        for method in compare:
            place = policies[method].parent
            args = (config, '--method', method, '--work-dir', place, *seeded)
            key = stages(f'policy {method}', 'baseline', *args, after=begin)
            finetuned(method, start, key)

    # Where load_from is no such net this is refused before hours of search.
    as_float = _written(_as_float(search), work_dir / 'configs' / 'float.py')
    test('float', as_float, start, *begin)
    stages.together(*([searched] if 'searched' in nets else []), others)

    metric = _metric(metrics)
    policy_of = {name: Policy.load(policy) for name, policy in policies.items()}
    costs = dict(float=policy_of[last].meta['costs']['float'])
    costs |= {
        name: policy.meta['costs']['searched'] for name, policy in policy_of.items()
    }
    seconds = {k: v['seconds'] for k, v in stages.done.items() if 'seconds' in v}
    # A detector that finds no box at all has no mAP.
    rows = [
        dict(
            name=_label(name, policy_of.get(name)),
            metric=metrics[name].get(metric, 0.0),
            bops=costs[name]['bops'],
            weight_bytes=costs[name]['weight_bytes'],
            seconds=sum(seconds.get(stage, 0) for stage in _stages_of(name)),
        )
        for name in ('float', *compare, *nets)
    ]
    results = dict(rows=rows, metric=metric, seconds=seconds, packed=str(packed))
    results['policy'] = str(policies[last])
    sizes = None
    if last != 'ptq':
        sizes = json.loads((packed.parent / 'sizes.json').read_text())
        results['sizes'] = sizes['total']
    if 'searched' in nets:
        results['report'] = str(write_report(folder, rows, work_dir / 'report', sizes))
    atomic_write(work_dir / 'results.json', json.dumps(results, indent=2) + '\n')
    return results


def show(results: dict[str, Any], console: Console) -> None:
    """Prints a table, a net a row."""
    rows = results['rows']
    table = Table('', results['metric'], 'GBOPs', '', 'weight bytes', '', 's')
    for row in rows:
        table.add_row(
            row['name'],
            f'{row["metric"]:.4g}',
            f'{row["bops"] / 1e9:.4g}',
            f'{rows[0]["bops"] / row["bops"]:.1f}x',
            f'{row["weight_bytes"]:,.0f}',
            f'{rows[0]["weight_bytes"] / row["weight_bytes"]:.1f}x',
            f'{row["seconds"]:,.0f}' if row['seconds'] else '',
        )
    console.print(table)


def _written(cfg: Config, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cfg.dump(path)
    return path


def _as_float(search: Config) -> Config:
    """The config of the net that the search starts from."""
    cfg = copy.deepcopy(search)
    cfg.model.type = cfg.model.pop('base_type')
    cfg.model.pop('quant')
    cfg.custom_hooks = []
    return cfg


def _label(name: str, policy: Policy | None) -> str:
    """A net's name in tables; of a uniform one with the precision of most layers."""
    if name != 'uniform':
        return 'ptq, fine-tuned' if name == 'ptq_finetuned' else name
    return f'uniform {Counter(policy.layers.values()).most_common(1)[0][0]}'


def _stages_of(name: str) -> list[str]:
    """The stages that make a net from the float one."""
    first = dict(searched='search', ptq='ptq', ptq_finetuned='ptq')
    return [first.get(name, f'policy {name}'), f'fine-tune {name}']


def _metric(metrics: dict[str, dict[str, float]]) -> str:
    """The metric that matters: mAP of detectors, else that of :func:`metric_of`."""
    names = list(dict.fromkeys(name for each in metrics.values() for name in each))
    # Only detectors, where no net finds a box, have nothing to say.
    found = next((n for n in names if n.endswith('bbox_mAP')), None)
    return metric_of(found, dict.fromkeys(names or ['bbox_mAP']))
