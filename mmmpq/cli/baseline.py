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
from mmmpq.engine.batches import endless, hold_out, train_batches, unwrapped
from mmmpq.engine.hooks import SearchHook
from mmmpq.engine.launch import add_cfg_options, load_config, positive
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

METHODS = (
    'uniform', 'uniform-all', 'sensitivity', 'fisher', 'hessian', 'greedy', 'random',
)  # fmt: skip
EXAMPLE = """methods:
  uniform      the largest precision that all groups can take at once, with the stem
               and the prediction layers at 8/8
  uniform-all  the same with these at that precision, too
  sensitivity  what one group alone at each candidate costs (--metric), the sum
               minimised under the budgets
  fisher       quantization errors times the gradients of the float net's loss,
               from one pass of the batches, the sum minimised under the budgets
  hessian      quantization errors times the Hessian's mean trace (HAWQ-V2),
               the sum minimised under the budgets
  greedy       bits taken away a group at a time where the loss of the whole net
               rises least for what is saved, measured at every step
  random       random policies that spend the budget; the best of --samples

examples:
  mmmpq baseline configs/bpnas/resnet_digits.py --method sensitivity
  mmmpq baseline configs/bpnas/retinanet_shapes.py --method hessian \\
      --budget W4A4 '1 MB'

CONFIG is one of a search; its load_from names the float checkpoint. Measurements are
kept in DIR: a run that was killed goes on, and other budgets cost seconds."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', metavar='CONFIG', help='config of a search')
    parser.add_argument('--method', choices=METHODS, required=True, help='see below')
    parser.add_argument(
        '--budget',
        nargs='+',
        action='extend',
        metavar='LIMIT',
        help="W3A3, 0.9*W4A4, '30 GBOPs', '12 MB' (default: those of the config's "
        'SearchHook)',
    )
    parser.add_argument(
        '--work-dir',
        metavar='DIR',
        help='where policy.json and measurements go (default: '
        'work_dirs/<name of the config>_<method>)',
    )
    parser.add_argument(
        '--batches',
        type=positive,
        default=4,
        metavar='N',
        help='batches that are measured on (default: %(default)s)',
    )
    parser.add_argument(
        '--metric',
        choices=sensitivity.METRICS,
        default='loss',
        help='of sensitivity: increase of the loss, or distance of the raw outputs '
        '(default: %(default)s)',
    )
    parser.add_argument(
        '--vectors',
        type=positive,
        default=200,
        metavar='N',
        help='of hessian: most random vectors (default: %(default)s)',
    )
    parser.add_argument(
        '--tolerance',
        type=float,
        default=0.1,
        metavar='SHARE',
        help='of hessian: relative standard error to stop at (default: %(default)s)',
    )
    parser.add_argument(
        '--samples',
        type=positive,
        default=1,
        metavar='N',
        help='of random: policies, of which the one with the least loss on '
        'batches of held_out is kept (default: %(default)s)',
    )
    parser.add_argument(
        '--seed', type=int, help='(default: randomness.seed of the config, else 0)'
    )
    add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.work_dir is None:
        args.work_dir = f'work_dirs/{Path(args.config).stem}_{args.method}'
    return args


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
