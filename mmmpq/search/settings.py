"""What a search is asked for: by a config's SearchHook, or by a loop of one's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmmpq.arguments import checks_arguments
from mmmpq.costs import Budget
from mmmpq.costs.budget_text import with_places
from mmmpq.losses import Objective
from mmmpq.search.logits import build_optimizer, build_scheduler
from mmmpq.search.start import STARTS

PENALTIES = (dict(type='BarrierPenalty'), dict(type='Prob1Regularizer'))
ADAM = dict(type='Adam', lr=0.1, betas=(0.5, 0.999))


@checks_arguments('Search')
@dataclass
class Settings:
    """How the logits step.

    Args:
        optimizer: Config of their optimizer; default Adam, lr 0.1.
        scheduler: Config of its learning rate schedule, in steps of the logits, or with
            ``by_epoch=True`` in epochs, counted from the first of these steps.
        clip_grad: As of MMEngine's ``OptimWrapper``.
        warmup: Share of the search in which the logits rest.
        interval: Iterations from one step to the next; with ``joint``, steps of the
            weights.
        joint: They step with the weights, on the same batches (EdMIPS).
        start: 'biased' or 'continuation', see :mod:`mmmpq.search.start`.
        margin: Slack of the biased start, a share of the budget.
        continuation: Share of the search at which the bound reaches the budget; more
            than ``warmup``, when it starts to shrink.
    """

    optimizer: Mapping[str, Any] | None = None
    scheduler: Mapping[str, Any] | None = None
    clip_grad: Mapping[str, Any] | None = None
    warmup: float = 0.1
    interval: int = 1
    joint: bool = False
    start: str = 'continuation'
    margin: float = 0.02
    continuation: float = 0.6

    def __post_init__(self) -> None:
        self.optimizer = dict(self.optimizer or ADAM)

    def check(self, key: str, budgets: Sequence[Budget], objective: Objective) -> None:
        """Raises ValueError for what cannot be; ``key`` is whose argument it is."""
        if self.start not in STARTS:
            raise ValueError(f'{key}.start: found {self.start!r}; accepted: {STARTS}')
        if not 0 <= self.warmup < 1:
            raise ValueError(
                f'{key}.warmup: found {self.warmup!r}; accepted are shares from 0 to 1'
            )
        if self.interval < 1:
            raise ValueError(f'{key}.interval: found {self.interval!r}; at least 1')
        if not 0 <= self.margin < 1:
            raise ValueError(
                f'{key}.margin: found {self.margin!r}; accepted are shares from 0 to 1'
            )
        shrinks = budgets and self.start == 'continuation'
        if shrinks and not self.warmup < self.continuation <= 1:
            raise ValueError(
                f'{key}.continuation: found {self.continuation!r}; accepted are shares '
                f'of the search above warmup={self.warmup} and up to 1'
            )
        if not budgets and not objective.pricing:
            raise ValueError(
                f'{key}.budgets: found none; accepted is a list such as '
                "[dict(type='BOPs', limit='W4A4')], or none where one of the penalties "
                f'is a ComplexityPenalty or CostAwareLoss; found {objective.names}'
            )
        self._check_steps(key)

    def _check_steps(self, key: str) -> None:
        """Takes a step of a logit that nobody has: what is wrong is said at once."""
        logit = nn.Parameter(torch.zeros(1))
        logit.grad = torch.zeros_like(logit)
        name = 'optimizer'
        try:
            wrapper = build_optimizer(self.optimizer, [logit], None)
            wrapper.optimizer.step()
            if not logit.isfinite():
                raise ValueError(f'it takes logits to {logit.item()}')
            name = 'clip_grad'
            wrapper = build_optimizer(self.optimizer, [logit], self.clip_grad)
            if self.clip_grad:
                wrapper.clip_func([logit], **wrapper.clip_grad_kwargs)
            name = 'scheduler'
            scheduler = build_scheduler(self.scheduler, wrapper, 10, 5)
            if scheduler is not None:
                scheduler.step()
        except Exception as error:
            cfg = getattr(self, name)
            raise ValueError(
                f'{key}.{name}: found {dict(cfg)}; it takes no step: {error}'
            ) from error


def budgets_of(
    budgets: Sequence[str | Mapping | Budget],
    input_shape: Sequence[int] | None = None,
    key: str = 'budgets',
) -> list[Budget]:
    """Budgets of configs, or of texts such as 'W3A3', '12 MB', '0.9*W4A4, 20 KB'.

    Args:
        budgets: They hold at once.
        input_shape: (C, H, W) of the reference input, where one names none.
        key: That holds them, for the messages of errors.
    """
    common = None if input_shape is None else dict(input_shape=tuple(input_shape))
    return [
        b if isinstance(b, Budget) else Budget.build(b, place)
        for place, b in with_places(budgets, common, key)
    ]
