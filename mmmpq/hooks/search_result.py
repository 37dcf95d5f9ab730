"""What a search leaves behind: policy, weights, report."""

import contextlib
import copy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine import dist
from mmengine.runner import Runner
from torch import nn

from mmmpq.costs import BOPs, WeightBytes, total_cost
from mmmpq.fileio import atomic_save
from mmmpq.hooks.held_out import train_batches, unwrapped
from mmmpq.layers import MixedLayer
from mmmpq.models import apply_policy
from mmmpq.policy import Policy, Precision
from mmmpq.randomness import isolated_randomness
from mmmpq.search import SearchSpace, measure_gains, most_probable, spend
from mmmpq.version import __version__
from mmmpq.visualization import write_report

SPENDING_ROUNDS = 3  # each measures every upgrade that fits on its own
ENOUGH = 0.99  # share of a budget from which upgrades are not worth measuring
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
    """Solves for the policy, spends what it leaves, checks it and writes all files."""
    choice = most_probable(hook.space, hook.tables)
    if hook.measure:
        choice = _spend(runner, hook, choice)
    policy = described(runner, hook, choice)
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
    # A copy: the supernet itself is what the run's own checkpoints hold.
    model = apply_policy(copy.deepcopy(unwrapped(runner)), policy)
    atomic_save(
        dict(
            state_dict={k: v.cpu() for k, v in model.state_dict().items()},
            meta=dict(
                mmmpq=__version__,
                policy={name: list(p) for name, p in policy.layers.items()},
            ),
        ),
        work_dir / 'searched.pth',
    )
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


def described(runner: Runner, hook: 'SearchHook', choice: Sequence[int]) -> Policy:
    """The policy of a choice, with what it was found for."""
    policy = hook.space.policy(choice)
    model = unwrapped(runner)
    table = hook.tables[0]
    policy.meta = dict(
        model=type(model).__name__,
        input_shape=_shape(table.budget.input_shape),
        proposals=table.budget.proposals,
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
    """BOPs and weight bytes of the float net, a uniform one, and the policy's."""
    profiles = hook.tables[0].profiles

    def row(layers: dict[str, Precision], **more: Any) -> dict[str, Any]:
        return dict(
            more,
            bops=total_cost(BOPs(), profiles, layers),
            weight_bytes=total_cost(WeightBytes(), profiles, layers),
        )

    costs = dict(float=row({}), searched=row(policy.layers))
    limit = hook.tables[0].budget.limit
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


def _spend(runner: Runner, hook: 'SearchHook', choice: list[int]) -> list[int]:
    """Measures upgrades on held-out batches and takes the best that still fit."""
    model = unwrapped(runner)
    if hook.joint:
        batches = train_batches(runner, hook.measure)
    else:
        batches = hook.batches.take(hook.measure)

    @torch.no_grad()
    def loss_of(tried: Sequence[int]) -> float:
        total = torch.zeros(())
        with discrete(model, hook.space, tried), isolated_randomness(0):
            for batch in batches:
                data = model.data_preprocessor(batch, True)
                loss, _ = model.parse_losses(model._run_forward(data, mode='loss'))
                total = total.to(loss.device) + loss.float()
        dist.all_reduce(total, op='mean')
        return float(total) / len(batches)

    for _ in range(SPENDING_ROUNDS):
        policy = hook.space.policy(choice)
        spent = max(t.of(policy) / t.limit for t in hook.tables)
        runner.logger.info(
            f'{spent:.1%} of the budget is spent'
            + ('' if spent > ENOUGH else '; measuring where the rest helps most')
        )
        if spent > ENOUGH:
            break
        gains = measure_gains(hook.space, choice, hook.tables, loss_of)
        better = spend(choice, gains, hook.tables)
        if better == choice:
            break
        choice = better
    return choice


@contextlib.contextmanager
def discrete(
    model: nn.Module, space: SearchSpace, choice: Sequence[int]
) -> Iterator[None]:
    """Within it the supernet computes as the discrete net of ``choice``, in train mode;
    afterwards its buffers (BatchNorm's statistics, slow averages) are as before."""
    layers = [m for m in model.modules() if isinstance(m, MixedLayer)]
    mixings = [layer.mixing for layer in layers]
    drawn = [g.relaxation.choice for g in space.groups]
    buffers = [(b, b.clone()) for b in model.buffers()]
    was_training = model.training
    model.train()
    for layer in layers:
        layer.mixing = 'sampled'
    for group, j in zip(space.groups, choice, strict=True):
        group.relaxation.choice = j
    try:
        yield
    finally:
        for layer, mixing in zip(layers, mixings, strict=True):
            layer.mixing = mixing
        for group, j in zip(space.groups, drawn, strict=True):
            group.relaxation.choice = j
        for buffer, value in buffers:
            buffer.copy_(value)
        model.train(was_training)
