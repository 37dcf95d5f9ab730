"""What a search leaves behind: policy, weights, report."""

import contextlib
import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine import dist
from mmengine.runner import Runner
from torch import nn

from mmmpq.costs import BOPs, WeightBytes, total_cost
from mmmpq.fileio import atomic_save
from mmmpq.hooks.choice import choose
from mmmpq.hooks.held_out import unwrapped
from mmmpq.models import apply_policy
from mmmpq.policy import Policy, Precision
from mmmpq.search import most_probable
from mmmpq.version import __version__
from mmmpq.visualization import write_report

PREVIEW_SECONDS = 300  # drawing takes seconds, an epoch on a small set hardly more

if TYPE_CHECKING:
    from mmmpq.hooks.search_hook import SearchHook


def preview(runner: Runner, hook: 'SearchHook') -> None:
    """Writes the policy that the search would end with now, and, where the last one is
    some minutes old, its report."""
    if not dist.is_main_process():
        return
    choice = most_probable(hook.space, hook.tables)
    described(runner, hook, choice).save(Path(runner.work_dir) / 'policy.json')
    page = Path(runner.work_dir) / 'report' / 'index.html'
    if not page.exists() or time.time() - page.stat().st_mtime > PREVIEW_SECONDS:
        write_report(runner.work_dir)


def finish(runner: Runner, hook: 'SearchHook') -> None:
    """Chooses the policy, checks it and writes all files."""
    policy = described(runner, hook, choose(runner, hook))
    for table in hook.tables:
        cost = table.of(policy)
        if cost > table.limit:
            raise RuntimeError(
                f'the policy costs {cost} {table.budget.cost.unit}, over the budget of '
                f'{table.limit}: please report this'
            )
    if not dist.is_main_process():
        return
    work_dir = Path(runner.work_dir)
    save_searched(unwrapped(runner), policy, work_dir / 'searched.pth')
    policy.save(work_dir / 'policy.json')
    write_report(work_dir)
    runner.logger.info('The net that was found:\n' + _comparison(policy))
    for table in hook.tables:
        cost = table.of(policy)
        runner.logger.info(
            f'{table.name}: {cost:.6g} of {table.limit:.6g} {table.budget.cost.unit} '
            f'({cost / table.limit:.1%} of the budget)'
        )
    runner.logger.info(
        f'Wrote {work_dir}/policy.json, {work_dir}/searched.pth and '
        f'{work_dir}/report/index.html'
    )


def save_searched(supernet: nn.Module, policy: Policy, path: Path) -> None:
    """Writes the weights laid out for the net of ``policy``, to fine-tune from.

    From a copy: the supernet itself is what a run's own checkpoints hold.
    """
    model = apply_policy(copy.deepcopy(supernet), policy)
    layers = {name: list(p) for name, p in policy.layers.items()}
    state = {k: v.cpu() for k, v in model.state_dict().items()}
    atomic_save(
        dict(state_dict=state, meta=dict(mmmpq=__version__, policy=layers)), path
    )


def described(runner: Runner, hook: 'SearchHook', choice: Sequence[int]) -> Policy:
    """The policy of a choice, with what it was found for."""
    policy = hook.space.policy(choice)
    model = unwrapped(runner)
    reference = hook.prices[0].reference
    policy.meta.update(
        model=type(model).__name__,
        input_shape=_shape(reference.input_shape),
        proposals=reference.proposals,
        budgets=[
            dict(
                type=t.name,
                limit=t.limit,
                given=t.budget.limit,
                unit=t.budget.cost.unit,
                cost=t.of(policy),
                input_shape=_shape(t.budget.input_shape),
            )
            for t in hook.tables
        ],
        costs=_costs(hook, policy),
        seed=runner.seed,
        mmmpq=__version__,
    )
    return policy


def _shape(shape: Any) -> Any:
    return None if shape is None else list(shape)


def _costs(hook: 'SearchHook', policy: Policy) -> dict[str, dict[str, Any]]:
    """BOPs and weight bytes of the float net, a uniform one, and the policy's, at the
    reference input of the first budget or else penalty."""
    profiles = hook.prices[0].profiles

    def row(layers: dict[str, Precision], **more: Any) -> dict[str, Any]:
        return dict(
            more,
            bops=total_cost(BOPs(), profiles, layers),
            weight_bytes=total_cost(WeightBytes(), profiles, layers),
        )

    costs = dict(float=row({}), searched=row(policy.layers))
    limit = hook.tables[0].budget.limit if hook.tables else None
    with contextlib.suppress(ValueError):  # an absolute budget has no uniform twin
        uniform = Precision.parse(limit['of'] if isinstance(limit, dict) else limit)
        layers = {n: hook.space.fixed.get(n, uniform) for n in hook.space.order}
        costs['uniform'] = row(layers, name=str(uniform))
    return costs


def _comparison(policy: Policy) -> str:
    """Float, uniform and searched net, a line each; accuracies come from a test."""
    costs = policy.meta['costs']
    base = costs['float']
    lines = [f'{"":<16}{"GBOPs":>12}{"":>9}{"weight MB":>12}']
    for kind in ('float', 'uniform', 'searched'):
        row = costs.get(kind)
        if row is not None:
            name = row.get('name', '')
            lines.append(
                f'{f"{kind} {name}":<16}{row["bops"] / 1e9:>12.4f}'
                f'{base["bops"] / row["bops"]:>8.1f}x'
                f'{row["weight_bytes"] / 1e6:>12.4f}'
                f'{base["weight_bytes"] / row["weight_bytes"]:>8.1f}x'
            )
    return '\n'.join(lines)
