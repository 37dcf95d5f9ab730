"""A gradient search as an object, for any training loop."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmmpq.arguments import checks_arguments
from mmmpq.costs import Budget
from mmmpq.layers import Handed, open_checkpoints
from mmmpq.losses import Objective, Terms
from mmmpq.search.joint import JointGradients
from mmmpq.search.logits import (
    build_optimizer,
    build_scheduler,
    learning,
    mean_gradients,
    step_logits,
    task_gradient,
    with_penalties,
)
from mmmpq.search.problem import LOG, Problem
from mmmpq.search.reach import Reach
from mmmpq.search.schedule import Schedule
from mmmpq.search.settings import PENALTIES, Settings, budgets_of
from mmmpq.search.space import SearchSpace
from mmmpq.search.start import bias_logits, bounds, project, score_logits
from mmmpq.search.tables import pricing
from mmmpq.transfer import Fetch


@checks_arguments('Search')
class Search(Problem):
    """Searches the precisions of a supernet under budgets, in a loop that trains it.

    The loop calls :meth:`begin`, then in every iteration i :meth:`draw`, where
    :meth:`is_due` says so :meth:`step`, and computes its own loss within
    :meth:`mixing`; at the end :meth:`choose` and :meth:`policy`. With ``joint`` the
    logits learn from that loss as well: ``mixing(i)``, backward, :meth:`gather` and
    :meth:`joint_step`. :class:`mmmpq.SearchHook` does all this in MMEngine's loop, and
    says more of the arguments.

    Args:
        model: A supernet, such as :func:`mmmpq.quantize` makes with ``candidates``; its
            ranges are fitted (:func:`mmmpq.calibrate`) before the search begins.
        budgets: Configs of budgets, or 'W3A3', '12 MB', '0.9*W4A4, 20 KB'.
        penalties: Configs of losses on the probabilities.
        input_shape: (C, H, W) of the reference input, where a budget names none.
        seed: Of noise, sampled paths and sampled policies.
        space: The search space of ``model``, where it is known already.
        before_step: Called before the logits step; stops the search by an error.
        log: Takes what there is to say.
        **settings: Of :class:`mmmpq.search.Settings`: ``optimizer``, ``warmup``, ...

    Attributes:
        tables: What each choice costs under every budget.
        counted: The same, and those of what penalties count themselves.
        steps: That the logits have taken.

    Raises:
        ValueError: A wrong argument, or the budgets cannot be met.
    """

    def __init__(
        self,
        model: nn.Module,
        budgets: Sequence[str | Mapping | Budget] = (),
        penalties: Sequence[dict] | Objective = PENALTIES,
        input_shape: Sequence[int] | None = None,
        seed: int = 0,
        space: SearchSpace | None = None,
        before_step: Callable[[], None] = lambda: None,
        log: Callable[[str], None] = LOG.info,
        **settings: Any,
    ) -> None:
        budgets = budgets_of(budgets, input_shape, 'Search.budgets')
        self.objective = penalties
        if not isinstance(penalties, Objective):
            self.objective = Objective(penalties)
        self.settings = Settings(**settings)
        self.settings.check('Search', budgets, self.objective)
        super().__init__(model, budgets, seed=seed, space=space, log=log)
        self.objective.bind(pricing(model, self.space))
        self.counted += self.objective.tables
        self.before_step = before_step
        self.generator = torch.Generator()
        self.steps = 0
        self._reach = Reach(self.space, log)
        self._note({})

    # --- the loop -----------------------------------------------------------------

    def begin(
        self,
        iterations: int,
        epoch: int | None = None,
        window: int = 1,
        state: Mapping[str, Any] | None = None,
        harms: Sequence[np.ndarray] | None = None,
    ) -> None:
        """Gives the logits a start and an optimizer.

        Args:
            iterations: Of the whole search.
            epoch: Iterations in an epoch; default: all of them.
            window: With ``joint``, iterations that the weights accumulate for a step.
            state: Of :meth:`state_dict`, to go on from; the logits are then the
                model's, as they were loaded.
            harms: For each group, what its candidates add to the loss (m,), to start
                from; default: equal probabilities, or what the logits are.
        """
        how, logits = self.settings, self.space.logits
        self.schedule = Schedule(iterations, how.warmup, how.interval, window)
        self.epoch = epoch or iterations
        if state is None and harms is not None:
            score_logits(self.space, harms)
        if state is None and how.start == 'biased':
            bias_logits(self.space, self.tables, how.margin)
        self.optimizer = build_optimizer(how.optimizer, logits, how.clip_grad)
        self.scheduler = build_scheduler(
            how.scheduler,
            self.optimizer,
            self.schedule.steps,
            self.schedule.steps_in(self.epoch),
        )
        if how.joint:
            self._gathered = JointGradients(logits)
        if state is not None:
            self.load_state_dict(state)
            return
        with torch.no_grad():
            self.started_at = self.tables.expected(self.space.probs()).tolist()
        for t in self.tables:
            self.log(
                f'Budget {t.name} {t.at.limit!r}: {t.limit:.6g} {t.unit}, '
                f'candidates span [{t.min:.6g}, {t.max:.6g}] {t.unit}; '
                f'{t.constant:.6g} {t.unit} of it are not searched, '
                f'{t.floats:.6g} of these of float layers'
            )

    def draw(self, iteration: int) -> None:
        """Draws noise and paths of an iteration; they follow from the seed and it."""
        self.space.anneal(iteration / self.epoch)
        self.generator.manual_seed(self.seed + 104_729 * iteration)
        self.space.draw(self.generator)

    def is_due(self, iteration: int) -> bool:
        """Whether the logits step in this iteration."""
        return self.schedule.is_due(iteration)

    def hand(self, learn: bool = False) -> Handed:
        """Hands the layers what they mix with, until :meth:`release`; with ``learn``
        the gradient of the logits can be taken."""
        self.handed = self.space.hand(learn)
        return self.handed

    def release(self) -> None:
        """Takes back what was handed: the logits rest."""
        self.handed.release()
        self.space.learn(False)

    @contextmanager
    def mixing(self, iteration: int | None = None) -> Iterator[None]:
        """Within it the model is the supernet of a step of the weights.

        Args:
            iteration: With ``joint``, the present one: the logits learn where they are
                due in it.
        """
        self.hand(
            self.settings.joint and iteration is not None and self.is_due(iteration)
        )
        try:
            yield
        finally:
            self.release()

    def step(
        self,
        iteration: int,
        loss_of: Callable[[], Tensor],
        scale: Tensor | float = 1.0,
    ) -> None:
        """A step of the logits alone; weights and their gradients stay as they are.

        Args:
            iteration: The present one.
            loss_of: Computes the task loss of the model on a batch, best a held-out
                one.
            scale: Of an fp16 loss.
        """
        handed, logits = self.hand(learn=True), self.space.logits
        try:
            inputs = [*handed.leaves, *logits]
            with open_checkpoints():
                loss = loss_of()
                grads = torch.autograd.grad(loss * scale, inputs, allow_unused=True)
            count = len(handed.leaves)
            task = task_gradient(logits, handed, grads[:count], grads[count:])
            terms = self.penalty(iteration, handed.probs)
            self._reach.note(task)
            grads = with_penalties(logits, handed, task, terms, loss, scale)
        finally:
            self.release()
        self.move(iteration, grads, scale)
        self._note(dict(terms.parts, arch_loss=loss))

    def gather(self, loss: Tensor | None = None) -> None:
        """With ``joint``: keeps what the backward pass of a batch left of the logits'
        gradient. ``loss`` is its task loss, needed where a penalty multiplies it."""
        self._gathered.note(self.handed, loss if self.objective.multiplies else None)

    def joint_step(self, iteration: int, scale: Tensor | float = 1.0) -> None:
        """A step of the logits by all that was gathered since the last one."""
        logits, (task, loss) = self.space.logits, self._gathered.take()
        with learning(logits):
            terms = self.penalty(iteration, self.handed.probs)
            self._reach.note(task)
            grads = with_penalties(logits, self.handed, task, terms, loss, scale)
        self.move(iteration, grads, scale)
        self._note(terms.parts)

    def move(
        self,
        iteration: int,
        grads: Sequence[Tensor | None],
        scale: Tensor | float = 1.0,
    ) -> None:
        """Steps the logits by ``grads``, a tensor a group, and stays inside the bounds
        of the next step. An fp16 overflow leaves them where they are."""
        logits = self.space.logits
        mean = mean_gradients(logits, grads, scale)
        if mean is None:
            return
        self.before_step()
        step_logits(self.optimizer, logits, mean)
        project(self.space, self.tables, self.bounds(iteration, ahead=1))
        self.space.fetch()
        if self.scheduler is not None:
            self.scheduler.step()
        self.steps += 1

    def bounds(self, iteration: int, ahead: int = 0) -> list[float]:
        """B(t) of every budget in an iteration, or ``ahead`` steps of the logits on.

        It shrinks from the end of the warm-up on, as the logits rest until then.
        """
        how, moved = self.settings, self.schedule.moved(iteration, ahead)
        until = how.continuation - how.warmup if how.start == 'continuation' else 0.0
        return bounds(self.tables, self.started_at, moved, until)

    def penalty(self, iteration: int, probs: Sequence[Tensor] | None = None) -> Terms:
        """The terms of the objective beside the task loss, with the gradient of
        ``probs``; default: of the logits."""
        probs = self.space.probs() if probs is None else probs
        expected = self.tables.expected(probs)
        limits = self.bounds(iteration)
        ratios = [e / limit for e, limit in zip(expected, limits, strict=True)]
        return self.objective(probs, ratios, self.schedule.progress(iteration))

    @property
    def last(self) -> dict[str, float]:
        """The penalties of the last step of the logits, and its loss."""
        names, values = self._last
        return dict(zip(names, values.result().tolist(), strict=True))

    def _note(self, scalars: dict[str, Any]) -> None:
        values = [torch.as_tensor(v).detach().double() for v in scalars.values()]
        stacked = torch.stack(values) if values else torch.zeros(0)
        self._last = tuple(scalars), Fetch(stacked)

    # --- a run that was stopped ---------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All but the logits, which are parameters of the model."""
        state = dict(
            steps=self.steps,
            started_at=list(self.started_at),
            last=self.last,
            optimizer=self.optimizer.state_dict(),
        )
        if self.scheduler is not None:
            state['scheduler'] = self.scheduler.state_dict()
        return copy.deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.started_at = list(state['started_at'])
        self.steps = state['steps']
        self._note(state['last'])
        self.optimizer.load_state_dict(state['optimizer'])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state['scheduler'])
