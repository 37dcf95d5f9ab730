"""From a float net to a packed net that fits, without training."""

import argparse
import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn

from mmmpq.baselines.choices import least_harm
from mmmpq.baselines.measurements import Measurements, digest
from mmmpq.cli.export import costs_of
from mmmpq.cli.flags.ptq import parse_args
from mmmpq.costs import Budget
from mmmpq.costs.budget_text import with_texts
from mmmpq.costs.profile import reference_input_shape
from mmmpq.engine.batches import unwrapped
from mmmpq.engine.evaluation import Evaluation
from mmmpq.engine.launch import load_config
from mmmpq.engine.post_training import quant_of, runner_of, training_images
from mmmpq.engine.search_config import search_budgets, search_reference
from mmmpq.export.packed import save_packed
from mmmpq.export.packed.check import check_packed
from mmmpq.fileio import atomic_write, check_place
from mmmpq.models import apply_policy
from mmmpq.models.copying import copy_of
from mmmpq.policy import Policy
from mmmpq.post_training.front import Drop, cheapest_inside, front, metric_of
from mmmpq.post_training.kept import KeptLayers
from mmmpq.post_training.pipeline import (
    QUANT,
    Clock,
    policy_of,
    prepare,
    score,
    settle,
)
from mmmpq.search import Problem
from mmmpq.units import human
from mmmpq.visualization.progress import progress_bar, terminal


class PostTraining:
    """The float net of a command line, and the nets that are made of it."""

    def __init__(self, args: argparse.Namespace, console: Console) -> None:
        self.args, self.console = args, console
        self.folder = Path(args.work_dir)
        self.cfg = load_config(args)
        _, common = search_reference(self.cfg)
        searched = []  # the budgets of the config's search
        if not (args.budget or args.policy):
            searched = search_budgets(self.cfg, None)['budgets']
        self.quant = quant_of(self.cfg, args.policy)
        self.runner = runner_of(self.cfg, args.checkpoint, args.seed)
        self.supernet = unwrapped(self.runner)  # the float net, until it is prepared
        self.common = dict(common)
        shape = args.input_shape or common.get('input_shape')
        shape = shape or reference_input_shape(self.supernet)
        self.shape = self.common['input_shape'] = tuple(shape)
        if args.input_shape:
            searched = [dict(budget, input_shape=self.shape) for budget in searched]
        budgets = with_texts(args.budget or searched, self.common)
        self.budgets = [Budget.build(budget, '--budget') for budget in budgets]
        self.batches = training_images(self.runner, args.images)
        self.clock = Clock()
        self.evaluate = Evaluation(self.runner, args.test_images or 0)
        settings = dict(weights=digest(self.supernet), tested=self.evaluate.images)
        self.metrics = Measurements(self.folder / 'metrics.json', settings)
        of = (settings, args.images, args.seed, args.rounding, {**QUANT, **self.quant})
        of += ('equalised',) * args.equalise
        self.settings = json.dumps(of, default=str)
        self.float_metrics = self.tested('float', self.supernet)
        self.clock('test')
        with console.status('folding BatchNorms, calibrating ranges'):
            self.folded, self.equalised = prepare(
                self.supernet, self.batches, self.quant, self.shape, args.equalise
            )
        self.clock('prepare')

    def tested(self, name: str, model: nn.Module) -> dict[str, float]:
        """The metrics of a net, measured once."""
        if name not in self.metrics:
            with progress_bar(self.console, 'test', self.evaluate.steps) as bar:
                counter = iter(range(1, self.evaluate.steps + 1))
                self.evaluate.step = lambda: bar(next(counter))
                self.metrics[name] = self.evaluate(model)
        return self.metrics[name]

    def choices(self) -> tuple[Problem, list[list[int]]]:
        """What there is to choose from, the best inside the budgets last."""
        args = self.args
        problem = Problem(self.supernet, self.budgets, self.shape, args.seed)
        with steps_bar(self.console) as step:
            labels = False if args.no_labels else None
            kind = f'_{args.scores}' if args.scores else ''
            kind += '_no_labels' * args.no_labels + '_equalised' * args.equalise
            file = self.folder / f'scores{kind}.json'
            harms = score(problem, self.batches, labels, file, step, args.scores)
        self.clock('score')
        if args.max_drop is None:
            return problem, [least_harm(harms, problem.tables)]
        return problem, front(harms, problem.tables, args.points)

    def net_of(self, policy: Policy) -> nn.Module:
        """The net of a policy, rounded and corrected; layers that were kept are not
        made again."""
        args = self.args
        net = self.supernet
        if args.policy is None:
            net = apply_policy(copy_of(net), policy)
        folder = self.folder / 'layers' / self.key(policy)
        with steps_bar(self.console) as step:
            settle(net, self.batches, args.rounding, KeptLayers(folder), step)
        self.clock('round')
        return net

    def key(self, policy: Policy) -> str:
        """What a net of this run is kept under."""
        layers = {name: list(p) for name, p in policy.layers.items()}
        of = json.dumps([layers, self.settings])
        return hashlib.sha256(of.encode()).hexdigest()[:16]

    def measured(self, policy: Policy) -> tuple[nn.Module | None, dict[str, float]]:
        """The net of a policy, where it had to be made, and its metrics."""
        key = self.key(policy)
        if key in self.metrics:
            return None, self.metrics[key]
        net = self.net_of(policy)
        return net, self.tested(key, net)

    def metric(self) -> str:
        """The metric that drops are measured in."""
        return metric_of(self.args.metric, self.float_metrics)

    def drop(self, metrics: dict[str, float]) -> Drop:
        """From the float net to one of these metrics, in points."""
        images = self.evaluate.images
        return Drop.between(self.float_metrics, metrics, self.metric(), images)

    def inside(self, problem: Problem, choices: Sequence[list[int]]) -> list[int]:
        """The cheapest choice whose drop is at most --max-drop."""
        limit = self.args.max_drop

        def drop(i: int) -> float:
            _, metrics = self.measured(problem.policy(choices[i]))
            estimate = self.drop(metrics)
            cost = problem.policy(choices[i]).meta['budgets'][0]
            self.console.print(
                f'{human(cost["cost"], cost["unit"])}: {estimate.statement(limit)}'
            )
            return estimate.points

        best = cheapest_inside(len(choices), drop, limit)
        if best is None:
            budgets = problem.policy(choices[-1]).meta['budgets']
            names = (str(budget['given']) for budget in budgets)
            raise ValueError(
                f'--max-drop: no net inside {" and ".join(names)} is within '
                f'{limit:g} points of the float one; accepted are more points, or a '
                'higher --budget'
            )
        return choices[best]


@contextmanager
def steps_bar(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """As :func:`progress_bar`, of steps that say themselves what is done."""
    with progress_bar(console, 'layers', 1) as bar:
        yield lambda title, done, total: bar(done, total, note=title)


def packed(run: PostTraining, net: nn.Module, policy: Policy) -> dict[str, str]:
    """Writes the policy, a config, the packed file and, if asked for, an ONNX file."""
    folder, args = run.folder, run.args
    cfg = copy.deepcopy(run.cfg)
    cfg.model.base_type = cfg.model.pop('type')
    cfg.model.type = 'mmmpq.QuantModel'
    policy.meta.setdefault('input_shape', list(run.shape))
    policy.meta['costs'] = costs_of(net, run.shape)
    policy.save(folder / 'policy.json')
    cfg.model.quant = dict(policy=str((folder / 'policy.json').resolve()))
    cfg.dump(folder / 'config.py')
    files = dict(policy='policy.json', config='config.py', packed='net.safetensors')
    cfg.model.quant = dict(policy=policy.to_dict())
    file = folder / files['packed']
    save_packed(net, file, cfg, policy.meta, run.runner.known_meta)
    check_packed(net, file, run.shape)
    if args.onnx:
        from mmmpq.export.onnx.graph import export_onnx

        files['onnx'] = 'net.onnx'
        export_onnx(net, folder / files['onnx'], run.shape)
    return {kind: str(folder / name) for kind, name in files.items()}


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    console = terminal(120)
    replaced = check_place(Path(args.work_dir) / 'ptq.json', '--work-dir')
    run = PostTraining(args, console)
    if args.policy is None:
        problem, choices = run.choices()
        choice = choices[-1]
        if args.max_drop is not None:
            choice = run.inside(problem, choices)
        policy = problem.policy(choice)
    else:
        policy = policy_of(run.supernet)
    net = run.net_of(policy)
    metrics = run.tested(run.key(policy), net)
    run.clock('test the net')
    files = packed(run, net, policy)
    show(run, policy, metrics)
    result = dict(
        float=run.float_metrics,
        metrics=metrics,
        tested=run.evaluate.images,
        costs=policy.meta['costs'],
        budgets=policy.meta.get('budgets', []),
        rounding=args.rounding,
        equalised=run.equalised,
        images=args.images,
        seconds=run.clock.seconds,
        files=files,
    )
    if args.max_drop is not None:
        drop = run.drop(metrics)
        result['drop'] = dict(drop._asdict(), limit=args.max_drop, metric=run.metric())
    path = Path(args.work_dir) / 'ptq.json'
    atomic_write(path, json.dumps(result, indent=2) + '\n')
    console.print(f'packed: {files["packed"]}\nreport: {path}{replaced}')


def show(run: PostTraining, policy: Policy, metrics: dict[str, float]) -> None:
    """Prints the float net and the quantized one."""
    name = run.metric()
    table = Table('', name, 'GBOPs', '', 'MB', '')
    rows: list[tuple[str, Callable]] = [('float', run.float_metrics), ('ptq', metrics)]
    base = policy.meta['costs']['float']
    kinds = zip(rows, ('float', 'searched'), strict=True)
    for (title, values), kind in kinds:
        cost = policy.meta['costs'][kind]
        table.add_row(
            title,
            f'{values.get(name, 0.0):.4g}',
            f'{cost["bops"] / 1e9:.4g}',
            f'{base["bops"] / cost["bops"]:.1f}x',
            f'{cost["weight_bytes"] / 1e6:.4g}',
            f'{base["weight_bytes"] / cost["weight_bytes"]:.1f}x',
        )
    run.console.print(table)
    drop = run.drop(metrics)
    run.console.print(
        f'{name} falls by {drop.points:.2f} ± {drop.half:.2f} points, on '
        f'{run.evaluate.images} images; {len(run.folded.folded)} BatchNorms folded'
        + f', {len(run.equalised)} pairs of layers equalised'
        * run.args.equalise
    )
