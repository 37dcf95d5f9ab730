"""The choice that a search ends with: solved for, sampled, measured, spent."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from mmengine import dist
from mmengine.runner import Runner

from mmmpq.hooks.held_out import train_batches, unwrapped
from mmmpq.models.task_loss import mean_loss
from mmmpq.search import measure_gains, most_probable, sample_choices, spend
from mmmpq.search.chosen import chosen

SPENDING_ROUNDS = 3  # each measures every upgrade that fits on its own
ENOUGH = 0.99  # share of a budget from which upgrades are not worth measuring
SAMPLING = 15_485_863  # seeds the samples, with the run's seed

if TYPE_CHECKING:
    from mmmpq.hooks.search_hook import SearchHook

Loss = Callable[[Sequence[int]], float]


def choose(runner: Runner, hook: 'SearchHook') -> list[int]:
    """The most probable choice, or the best of it and of samples, with what it leaves
    of the budgets spent."""
    choice = most_probable(hook.space, hook.tables)
    spending = bool(hook.measure and hook.tables)
    if not hook.samples and not spending:
        return choice
    loss_of = _measured(runner, hook)
    if hook.samples:
        choice = _best_sample(runner, hook, choice, loss_of)
    return _spend(runner, hook, choice, loss_of) if spending else choice


def _measured(runner: Runner, hook: 'SearchHook') -> Loss:
    """The loss of a choice on held-out batches, or in joint mode on training ones."""
    model, count = unwrapped(runner), max(1, hook.measure)
    batches = train_batches(runner, count) if hook.joint else hook.batches.take(count)

    def loss_of(tried: Sequence[int]) -> float:
        with chosen(model, hook.space, tried):
            loss = torch.tensor(mean_loss(model, batches))
        dist.all_reduce(loss, op='mean')
        return float(loss)

    return loss_of


def _best_sample(
    runner: Runner, hook: 'SearchHook', choice: list[int], loss_of: Loss
) -> list[int]:
    """Draws policies from the final probabilities and keeps the one of least loss."""
    generator = torch.Generator().manual_seed((runner.seed or 0) + SAMPLING)
    drawn = sample_choices(hook.space, hook.tables, hook.samples, generator)
    tried = [choice, *(c for c in drawn if c != choice)]
    losses = []
    for i, each in enumerate(tried):
        loss = loss_of(each)
        losses.append(loss if math.isfinite(loss) else math.inf)
        name = f'sample {i} of {len(tried) - 1}' if i else 'the most probable policy'
        cost = hook.prices[0].of(hook.space.policy(each))
        unit = hook.prices[0].reference.cost.unit
        runner.logger.info(f'Loss {loss:.4f}, {cost:.6g} {unit}: {name}')
    return tried[losses.index(min(losses))]


def _spend(
    runner: Runner, hook: 'SearchHook', choice: list[int], loss_of: Loss
) -> list[int]:
    """Measures upgrades and takes the best that still fit."""
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
