"""What a search leaves behind: policy, weights, report."""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine import dist
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmmpq.fileio import atomic_save
from mmmpq.models import apply_policy
from mmmpq.models.copying import copy_of
from mmmpq.models.task_loss import mean_loss
from mmmpq.policy import Policy
from mmmpq.search import Problem
from mmmpq.units import fits
from mmmpq.version import __version__
from mmmpq.visualization import write_report

PAUSE = 300, 20  # from one drawing to the next: seconds, and times what it took


class Preview:
    """Writes the policy that a search would end with now, and now and then its report.

    Other processes wait for the drawing, and it takes longer the larger a net is: at
    most a twentieth of the time is spent on it. Of the ``last`` none is drawn, for
    :func:`finish` follows.
    """

    def __init__(self) -> None:
        self._due = -math.inf

    def __call__(self, runner: Runner, search: Problem, last: bool = False) -> None:
        if not dist.is_main_process():
            return
        search.policy().save(Path(runner.work_dir) / 'policy.json')
        began = time.monotonic()
        if began >= self._due and not last:
            draw(runner)
            now = time.monotonic()
            self._due = now + max(PAUSE[0], PAUSE[1] * (now - began))


def draw(runner: Runner) -> None:
    """Writes the report; that it fails is no end of a search."""
    try:
        write_report(runner.work_dir)
    except Exception as error:
        runner.logger.warning(
            f'The report cannot be drawn: {type(error).__name__}: {error}; '
            f'`mmmpq report {runner.work_dir}` tries again'
        )


def keep(runner: Runner, search: Problem, policy: Policy) -> None:
    """Writes a policy and its weights, before anything that may fail."""
    if not dist.is_main_process():
        return
    work_dir = Path(runner.work_dir)
    policy.save(work_dir / 'policy.json')
    try:
        save_searched(search.model, policy, work_dir / 'searched.pth')
    except Exception as error:
        state = search.model.state_dict()  # with the widths of its ranges
        for key in state:
            state[key] = state[key].cpu()
        meta = dict(mmmpq=__version__, policy=_pairs(policy))
        atomic_save(dict(state_dict=state, meta=meta), work_dir / 'supernet.pth')
        raise RuntimeError(
            f'searched.pth cannot be made ({type(error).__name__}: {error}); '
            f'{work_dir}/policy.json has the policy and {work_dir}/supernet.pth the '
            'weights: fine-tune with these as quant.policy and load_from'
        ) from error


def loss_on(model: BaseModel, batches: Sequence[Any]) -> Callable[[], float]:
    """What computes the task loss of ``model`` on batches, as all processes see it."""

    def loss_of() -> float:
        loss = torch.tensor(mean_loss(model, batches))
        dist.all_reduce(loss, op='mean')
        return float(loss)

    return loss_of


def finish(
    runner: Runner, search: Problem, policy: Policy, kept: Policy | None = None
) -> None:
    """Checks the policy that a search ends with and writes all files.

    Args:
        kept: The policy whose files are there already, if one's are.
    """
    for table in search.tables:
        cost = table.of(policy)
        if not fits(cost, table.limit):
            raise RuntimeError(
                f'the policy costs {cost} {table.unit}, over the budget of '
                f'{table.limit}: please report this'
            )
    if not dist.is_main_process():
        return
    if kept is None or policy.layers != kept.layers:
        keep(runner, search, policy)
    draw(runner)
    work_dir = runner.work_dir
    runner.logger.info('The net that was found:\n' + _comparison(policy))
    for table in search.tables:
        cost = table.of(policy)
        runner.logger.info(
            f'{table.name}: {cost:.6g} of {table.limit:.6g} {table.unit} '
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
    model = apply_policy(copy_of(supernet), policy)
    state = {k: v.cpu() for k, v in model.state_dict().items()}
    meta = dict(mmmpq=__version__, policy=_pairs(policy))
    atomic_save(dict(state_dict=state, meta=meta), path)


def _pairs(policy: Policy) -> dict[str, list[int]]:
    return {name: list(p) for name, p in policy.layers.items()}


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
