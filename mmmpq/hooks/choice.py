"""The choice that a search ends with: solved for, sampled, measured, spent."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from mmengine import dist
from mmengine.runner import Runner
from torch import nn

from mmmpq.hooks.held_out import train_batches, unwrapped
from mmmpq.layers import MixedLayer
from mmmpq.randomness import isolated_randomness
from mmmpq.search import (
    SearchSpace,
    measure_gains,
    most_probable,
    sample_choices,
    spend,
)

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
