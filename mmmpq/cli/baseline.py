"""Write a policy without a gradient search: uniform, measured, or at random."""

import argparse
import copy
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from rich.console import Console
from rich.table import Table

from mmmpq.baselines import fisher, greedy, hessian, sensitivity
from mmmpq.baselines.choices import largest_uniform, least_harm, random_choice
from mmmpq.baselines.hutchinson import relative_error
from mmmpq.baselines.measurements import Measurements, fingerprint
from mmmpq.cli.flags.baseline import parse_args
from mmmpq.engine.batches import endless, hold_out, train_batches, unwrapped
from mmmpq.engine.hooks import SearchHook
from mmmpq.engine.launch import load_config
from mmmpq.engine.search_config import search_budgets
from mmmpq.engine.supernet import float_supernet_runner
from mmmpq.fileio import check_place
from mmmpq.models import calibrate
from mmmpq.policy import Policy
from mmmpq.registry import HOOKS
from mmmpq.search import Search
from mmmpq.search.at_choice import at_choice
from mmmpq.units import statement
from mmmpq.visualization.progress import progress_bar, terminal


def search_hook(cfg: Config, limits: Sequence[str] | None) -> SearchHook:
    """The config's SearchHook, with the budgets of the command line if it has any."""
    return HOOKS.build(dict(search_budgets(copy.deepcopy(cfg), limits)))


def find(
    method: str,
    runner: Runner,
    hook: SearchHook,
    search: Search,
    args: argparse.Namespace,
    console: Console,
) -> Policy:
    """The policy of a method; ``hook`` says what is held out and calibrated on."""
    model, space, tables = search.model, search.space, search.tables
    seed = runner.seed or 0
    if method.startswith('uniform'):
        return largest_uniform(space, tables, ends=method == 'uniform-all')
    if method == 'random' and args.samples == 1:
        return search.policy(random_choice(tables, seed))
    settings = {
        **fingerprint(model, space),
        'config of model and data': _digest(
            runner.cfg.model, runner.cfg.train_dataloader, hook.held_out
        ),
        'batches': args.batches,
        'calibration': hook.calibration,
        'seed': seed,
    }
    if method == 'sensitivity':
        settings['metric'] = args.metric
    cache = None
    if method not in ('random', 'greedy'):
        cache = Measurements(Path(args.work_dir) / f'{method}.json', settings)
    held_out = endless(runner, hold_out(runner, hook.held_out))
    calibrate(model, train_batches(runner, hook.calibration))
    if method == 'random':
        return search.policy(
            _best_random(search, held_out.take(args.batches), args, seed)
        )
    batches = train_batches(runner, args.batches)
    if method == 'greedy':
        with progress_bar(console, '% of the way to the budget', 100) as bar:
            loss_of = loss_of_choice(search, batches)
            choice = greedy.choose(
                space, tables, loss_of, step=lambda share: bar(int(100 * share))
            )
            return search.policy(choice)
    if method == 'sensitivity':
        with progress_bar(
            console, f'{args.metric} of one group', sum(space.sizes)
        ) as bar:
            harms = sensitivity.measure(
                *(model, space, batches, args.metric, cache), step=bar
            )
    elif method == 'fisher':
        with progress_bar(console, 'batches', len(batches)) as bar:
            harms = fisher.measure(model, space, batches, cache, step=bar)
    else:
        with progress_bar(console, 'random vectors', args.vectors) as bar:
            harms = hessian.measure(
                *(model, space, batches, args.vectors, args.tolerance, seed, cache),
                step=lambda done, error: bar(
                    done, note=f'relative standard error {error:.3f}'
                ),
            )
        console.print(
            f'{len(cache["samples"])} vectors, relative standard error '
            f'{relative_error(cache["samples"]):.3f}, by '
            f'{cache.get("how", hessian.EXACT)}'
        )
    return search.policy(least_harm(harms, tables))


def loss_of_choice(
    search: Search, batches: Sequence[Any]
) -> Callable[[Sequence[int]], float]:
    """The task loss of the net of a choice, a mean over ``batches``."""

    def loss_of(choice: Sequence[int]) -> float:
        with at_choice(search.model, search.space, choice):
            return sensitivity.mean_loss(search.model, batches)

    return loss_of


def _best_random(search, batches, args, seed) -> list[int]:
    losses, loss_of = [], loss_of_choice(search, batches)
    with progress_bar(terminal(stderr=True), 'random policies', args.samples) as bar:
        for i in range(args.samples):
            choice = random_choice(search.tables, seed + i)
            losses.append((loss_of(choice), i, choice))
            bar(i + 1)
    return min(losses)[-1]


def _digest(*configs: Any) -> str:
    text = '\n'.join(str(c.to_dict() if hasattr(c, 'to_dict') else c) for c in configs)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def show(policy: Policy, method: str, console: Console) -> None:
    """What the net costs beside the float one, and what it spends of each budget."""
    costs = policy.meta['costs']
    base = costs['float']
    table = Table('', 'GBOPs', '', 'MB', '')
    for column in table.columns[1:]:
        column.justify = 'right'
    for kind, name in (('float', 'float'), ('uniform', 'budget'), ('searched', method)):
        row = costs.get(kind)
        if row is not None:
            table.add_row(
                f'{name} {row.get("name", "")}'.strip(),
                f'{row["bops"] / 1e9:.4f}',
                f'{base["bops"] / row["bops"]:.1f}x',
                f'{row["weight_bytes"] / 1e6:.4f}',
                f'{base["weight_bytes"] / row["weight_bytes"]:.1f}x',
            )
    console.print(table)
    for b in policy.meta['budgets']:
        console.print(f'{b["type"]} {statement(b["cost"], b["limit"], b["unit"])}')


def main() -> None:
    args = parse_args()
    console = terminal()
    replaced = check_place(Path(args.work_dir) / 'policy.json', '--work-dir')
    cfg = load_config(args)
    hook = search_hook(cfg, args.budget)
    unmeasured = args.method.startswith('uniform')
    unmeasured |= args.method == 'random' and args.samples == 1
    trained = not unmeasured
    runner = float_supernet_runner(cfg, args.seed, trained)
    search = Search(unwrapped(runner), hook.budgets, (), seed=runner.seed or 0)
    policy = find(args.method, runner, hook, search, args, console)
    policy = search.described(policy)
    policy.meta['method'] = args.method
    path = policy.save(Path(args.work_dir) / 'policy.json')
    show(policy, args.method, console)
    console.print(f'wrote {path}{replaced}', soft_wrap=True)
