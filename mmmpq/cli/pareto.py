"""Policies for many budgets from one finished search, without searching again."""

import argparse
import json

from rich.table import Table

from mmmpq.cli.flags.pareto import parse_args
from mmmpq.costs.budget_text import budget_cfgs, file_name
from mmmpq.engine.batches import train_batches, unwrapped
from mmmpq.engine.evaluation import evaluate_policies
from mmmpq.engine.launch import load_config
from mmmpq.engine.results import loss_on, save_searched
from mmmpq.engine.run_folder import find_checkpoint, find_config, history_probs
from mmmpq.engine.search_config import search_reference
from mmmpq.engine.supernet import supernet_runner
from mmmpq.fileio import atomic_write, check_place
from mmmpq.policy import Policy
from mmmpq.post_training.front import Drop, metric_of
from mmmpq.search import SearchSpace
from mmmpq.search.many_budgets import policies_within, searches_within
from mmmpq.units import human
from mmmpq.visualization.pareto import costs_of, pareto
from mmmpq.visualization.progress import terminal
from mmmpq.visualization.theme import LIGHT, draw


def load_supernet(args):
    """A Runner with the supernet, its search space, the final probabilities, and what
    the search counted."""
    config = args.config or find_config(args.search_dir)
    cfg = load_config(
        argparse.Namespace(
            config=str(config),
            cfg_options=args.cfg_options,
            work_dir=str(args.out),
        )
    )
    reference = search_reference(cfg)
    checkpoint = args.checkpoint or find_checkpoint(args.search_dir)
    if checkpoint is None and (args.spend or args.weights or args.evaluate is not None):
        raise FileNotFoundError(
            f'--spend, --weights, --evaluate: {args.search_dir} holds no checkpoint'
        )
    runner = supernet_runner(cfg, checkpoint)
    space = SearchSpace(unwrapped(runner))
    if checkpoint is None:
        return runner, space, history_probs(args.search_dir, space), reference
    return runner, space, space.probs(), reference


def replaced_files(args):
    """Names of the files to be written that are there now."""
    policies = [f'policy_{file_name(text)}.json' for text in args.budgets]
    files = ['pareto.json', 'pareto.png', *policies]
    if args.weights:
        files += [weights_of(policy) for policy in policies]
    return [name for name in files if check_place(args.out / name, '--out')]


def weights_of(policy):
    """Name of the file with the weights of a policy's file."""
    return policy.replace('policy_', 'searched_').replace('.json', '.pth')


def show(points, metric, console):
    table = Table()
    table.add_column('budget')
    for name in ('cost', 'limit', 'used', 'BOPs', 'weights', 'Σ log p'):
        table.add_column(name, justify='right')
    if metric:
        table.add_column(metric, justify='right')
    if 'drop' in points[0]:
        table.add_column('drop, points', justify='right')
    for point in points:
        for i, budget in enumerate(point['budgets']):
            cost, limit, unit = budget['cost'], budget['limit'], budget['unit']
            row = [human(cost, unit), human(limit, unit), f'{cost / limit:.1%}']
            if i == 0:
                row = [point['budget'], *row, human(point['bops'], 'BOPs')]
                row += [human(point['weight_bytes'], 'B'), f'{point["score"]:.3f}']
                row += [f'{point["metrics"][metric]:.4g}'] if metric else []
                if 'drop' in point:
                    row.append('{points:.2f} ± {half:.2f}'.format(**point['drop']))
            else:
                row = ['', *row]
            table.add_row(*row)
    console.print(table)


def main():
    args = parse_args()
    args.out = args.out or args.search_dir / 'pareto'
    if args.metric and args.evaluate is None:
        raise ValueError(
            f'--metric: found {args.metric!r}; accepted is one with --evaluate; '
            'nothing was evaluated'
        )
    replaced = replaced_files(args)
    console = terminal(140)
    runner, space, probs, (kind, common) = load_supernet(args)
    budgets = {
        text: budget_cfgs(text, args.type or kind, common, args.table)
        for text in args.budgets
    }
    model, loss_of = unwrapped(runner), None
    searches = searches_within(
        budgets, space, model=model, seed=runner.seed or 0, log=runner.logger.info
    )
    if args.spend:
        loss_of = loss_on(model, train_batches(runner, args.spend))
    solved = policies_within(searches, probs, loss_of)
    metrics, float_metrics = [{} for _ in solved], None
    if args.evaluate is not None:
        policies = {name: policy for name, policy, _ in solved}
        if args.max_drop is not None:
            policies = {'float': None, **policies}
        metrics = evaluate_policies(
            runner, policies, args.evaluate, args.calibration, console, args.metric
        )
        if args.max_drop is not None:
            float_metrics, *metrics = metrics
    searched = args.search_dir / 'policy.json'
    seed = Policy.load(searched).meta.get('seed') if searched.is_file() else None
    points = []
    for (name, policy, score), measured in zip(solved, metrics, strict=True):
        policy.meta['seed'] = runner.seed if seed is None else seed
        file = f'policy_{file_name(name)}.json'
        policy.save(args.out / file)
        if args.weights:
            save_searched(model, policy, args.out / weights_of(file))
        costs = policy.meta['costs']['searched']
        points.append(
            dict(
                budget=name,
                policy=file,
                score=score,
                budgets=policy.meta['budgets'],
                bops=costs['bops'],
                weight_bytes=costs['weight_bytes'],
                metrics=measured,
            )
        )
    metric = args.metric or next(iter(metrics[0]), None)
    if float_metrics is not None:
        metric = metric_of(args.metric, float_metrics)
        images = len(runner.test_loop.dataloader.dataset)
        for point in points:
            drop = Drop.between(float_metrics, point['metrics'], metric, images)
            point['drop'] = drop._asdict()
    atomic_write(args.out / 'pareto.json', json.dumps(points, indent=2) + '\n')
    atomic_write(args.out / 'pareto.png', draw(pareto, LIGHT, points, metric))
    show(points, metric, console)
    console.print(
        f'Wrote {args.out}/pareto.json, pareto.png and the policies'
        + (f'; replaced {", ".join(replaced)}' if replaced else '')
    )
    if float_metrics is not None:
        console.print(cheapest(points, args.max_drop))


def cheapest(points, limit):
    """What can be said of the cheapest policy that is inside the limit.

    Raises:
        ValueError: None is.
    """
    costs, *_ = costs_of(points)
    drops = [Drop(**point['drop']) for point in points]
    inside = [i for i, drop in enumerate(drops) if drop.points <= limit]
    if not inside:
        best = min(range(len(points)), key=lambda i: drops[i].points)
        raise ValueError(
            f'--max-drop: no policy is within {limit:g} points of the float net; the '
            f'nearest is {points[best]["budget"]}, {drops[best].points:.2f} below it; '
            'accepted are more points, or dearer --budgets'
        )
    best = min(inside, key=lambda i: costs[i])
    return (
        f'The cheapest within {limit:g} points of the float net, both as the supernet '
        f'has them, not fine-tuned: {points[best]["budget"]}, '
        f'{drops[best].statement(limit)}'
    )
