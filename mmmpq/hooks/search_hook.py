"""The gradient search inside the toolbox's own training loop."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner
from torch import Tensor

from mmmpq.costs import Budget
from mmmpq.hooks.finite_hook import FiniteLossHook
from mmmpq.hooks.held_out import (
    Batches,
    Reseeding,
    hold_out,
    reseed,
    train_batches,
    unwrapped,
)
from mmmpq.hooks.history import History
from mmmpq.hooks.joint import JointGradients
from mmmpq.hooks.logits import (
    build_optimizer,
    build_scheduler,
    loss_scale,
    mean_gradients,
    set_gradients,
    step_logits,
    task_gradient,
    with_penalties,
)
from mmmpq.hooks.records import record
from mmmpq.hooks.resumed import resumed_state
from mmmpq.hooks.schedule import Schedule
from mmmpq.hooks.search_result import finish, preview
from mmmpq.losses import Objective, Terms
from mmmpq.models import calibrate
from mmmpq.registry import HOOKS
from mmmpq.search import (
    STARTS,
    SearchSpace,
    bias_logits,
    bounds,
    cost_tables,
    most_probable,
    pricing,
    project,
)
from mmmpq.transfer import Fetch

RECORDS = 200  # about as many lines of history, whatever the length of the search
PENALTIES = (dict(type='BarrierPenalty'), dict(type='Prob1Regularizer'))
ADAM = dict(type='Adam', lr=0.1, betas=(0.5, 0.999))


@HOOKS.register_module()
class SearchHook(Hook):
    """Searches the precisions of a supernet under budgets while it trains.

    After a warm-up, every ``interval`` iterations, a step on the logits alone: the task
    loss on another batch (``held_out``), times the penalties that are factors of it
    (``multiplies``), plus the others. Then the toolbox's loop takes its weight step as
    always. At the end the most probable policy inside every budget is solved for and
    written, with the weights that go with it.

    The barrier alone would let a step of the optimizer jump over it: where one does,
    the logits are moved back to the nearest ones inside, so that E[B] stays below the
    bound throughout. The architecture step leaves weights and their gradients alone;
    BatchNorm's running statistics see its batches as well.

    Source: Search What You Want: Barrier Panelty NAS for Mixed Precision Quantization,
    2020, arXiv 2007.10026; the feasible start, the schedules and the solver are ours.

    Args:
        budgets: Configs of :class:`mmmpq.costs.Budget`. None are needed where a penalty
            prices the net itself (``ComplexityPenalty``, ``CostAwareLoss``): then there
            is no bound, and each group ends with its most probable candidate.
        penalties: Configs of losses on the probabilities. Default: ``BarrierPenalty``
            and ``Prob1Regularizer``.
        optimizer: Config of the optimizer of the logits. Default: Adam, lr 0.1.
        scheduler: Config of its learning rate schedule, in architecture steps, or with
            ``by_epoch=True`` in epochs, counted from the first of these steps.
        clip_grad: As of ``OptimWrapper``, for the logits.
        held_out: What the architecture step learns from: a share of the training set,
            which the weights then do not see; the config of a dataset of its own; or
            None, all of the training set in another order than that of the weights.
        warmup: Share of the search that trains the weights alone.
        interval: Iterations from one architecture step to the next; with ``joint``,
            steps of the weights, which gradient accumulation takes more for.
        joint: The logits step on the training batch, with the weights (EdMIPS).
        start: 'biased' or 'continuation', see :mod:`mmmpq.search.start`.
        margin: Slack of the biased start, a share of the budget.
        continuation: Share of the search at which the bound reaches the budget; more
            than ``warmup``, when it starts to shrink.
        calibration: Batches on which quantizer ranges are fitted.
        measure: Held-out batches on which the loss of upgrades is measured, to spend
            what the policy leaves of the budgets; 0 leaves it unspent. With ``joint``
            these are training batches.
        samples: Policies drawn from the final probabilities, each inside the budgets
            (DNAS). Their loss is measured like that of upgrades, on one batch at least,
            and the best of them and of the most probable policy is kept.
    """

    priority = 'NORMAL'
    KEY = 'mmmpq_search'

    def __init__(
        self,
        budgets: Sequence[dict] = (),
        penalties: Sequence[dict] = PENALTIES,
        optimizer: dict | None = None,
        scheduler: dict | None = None,
        clip_grad: dict | None = None,
        held_out: float | dict | None = None,
        warmup: float = 0.1,
        interval: int = 1,
        joint: bool = False,
        start: str = 'continuation',
        margin: float = 0.02,
        continuation: float = 0.6,
        calibration: int = 8,
        measure: int = 2,
        samples: int = 0,
    ) -> None:
        if start not in STARTS:
            raise ValueError(f'SearchHook.start: found {start!r}; accepted: {STARTS}')
        self.schedule = Schedule(warmup, interval, joint)
        if budgets and start == 'continuation' and not warmup < continuation <= 1:
            raise ValueError(
                f'SearchHook.continuation: found {continuation!r}; accepted are shares '
                f'of the search above warmup={warmup} and up to 1'
            )
        if samples < 0:
            raise ValueError(f'SearchHook.samples: found {samples!r}; at least 0')
        self.budgets = [Budget.build(b) for b in budgets]
        self.objective = Objective(penalties)
        if not budgets and not self.objective.pricing:
            raise ValueError(
                'SearchHook.budgets: found none; accepted is a list such as '
                "[dict(type='BOPs', limit='W4A4')], or none where one of the penalties "
                f'is a ComplexityPenalty or CostAwareLoss; found {self.objective.names}'
            )
        self.optimizer_cfg = dict(optimizer or ADAM)
        self.scheduler_cfg = scheduler
        self.clip_grad = clip_grad
        self.held_out = held_out
        self.warmup = warmup
        self.joint = joint
        self.start = start
        self.margin = margin
        self.continuation = continuation
        self.calibration = calibration
        self.measure = measure
        self.samples = samples
        # Not registered with the runner: that would insert it before this hook while
        # the runner goes through its hooks, which then calls this one twice.
        self.finite = FiniteLossHook()
        self._resumed: dict | None = None
        self._note({})

    # --- set-up -------------------------------------------------------------------

    def before_run(self, runner: Runner) -> None:
        """Finds the groups, prices the candidates, checks the budgets, holds out."""
        if not isinstance(runner._train_loop, BaseLoop):
            return  # a test or validation of the supernet: nothing is searched
        model = unwrapped(runner)
        self.space = SearchSpace(model)
        self.tables = cost_tables(model, self.space, self.budgets)
        for table in self.tables:
            table.check()
        most_probable(self.space, self.tables)  # all of them at once can be met
        self.objective.bind(pricing(model, self.space))
        self.prices = [*self.tables, *self.objective.prices]
        self.generator = torch.Generator()
        self.history = History(runner.work_dir)
        if not self.joint:
            loader = hold_out(runner, self.held_out)
            self.batches = Batches(loader, seed=runner.seed or 0)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._resumed = resumed_state(runner, self, checkpoint)

    def before_train(self, runner: Runner) -> None:
        if self._resumed is None:
            self._begin(runner)
        self.optimizer = build_optimizer(
            self.optimizer_cfg, self.space.logits, self.clip_grad
        )
        self.scheduler = build_scheduler(
            self.scheduler_cfg,
            self.optimizer,
            self.schedule.steps(runner),
            self.schedule.steps_per_epoch(runner),
        )
        self._every = max(1, runner.max_iters // RECORDS)
        if self._resumed is not None:
            self.started_at = list(self._resumed['started_at'])
            self.steps = self._resumed['steps']
            self._note(self._resumed['last'])
            self.optimizer.load_state_dict(self._resumed['optimizer'])
            if self.scheduler is not None:
                self.scheduler.load_state_dict(self._resumed['scheduler'])
            if not self.joint:
                self.batches.position = self._resumed['position']
            if dist.is_main_process() and not self.history.resume(runner.iter):
                self._begin_history()
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = Reseeding(loop.dataloader_iterator, runner)
        if self.joint:
            self._joint = JointGradients(self.space.logits)
        self.finite.before_train(runner)

    def _begin(self, runner: Runner) -> None:
        model = unwrapped(runner)
        runner.logger.info(
            f'Search: {len(self.space.groups)} groups, calibrating on '
            f'{self.calibration} batches'
        )
        calibrate(model, train_batches(runner, self.calibration))
        if self.start == 'biased':
            bias_logits(self.space, self.tables, self.margin)
        self.steps = 0
        with torch.no_grad():
            self.started_at = self.tables.expected(self.space.probs()).tolist()
        if dist.is_main_process():
            self._begin_history()
        for t in self.tables:
            unit = t.budget.cost.unit
            runner.logger.info(
                f'Budget {t.name} {t.budget.limit!r}: {t.limit:.6g} {unit}, '
                f'candidates span [{t.min:.6g}, {t.max:.6g}] {unit}'
            )

    def _begin_history(self) -> None:
        self.history.begin(self.space, self.tables, self.schedule.interval)

    # --- training -----------------------------------------------------------------

    def before_train_epoch(self, runner: Runner) -> None:
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            reseed(runner, runner.epoch)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        self.finite.before_train_iter(runner, batch_idx, data_batch)
        self.space.anneal(self.schedule.epoch(runner))
        self.generator.manual_seed((runner.seed or 0) + 104_729 * runner.iter)
        self.space.draw(self.generator)
        if not self.joint and self.schedule.is_due(runner):
            self._architecture_step(runner)
        if self.joint:
            self._scale = self._loss_scale(runner)
            set_gradients(self.space.logits, self.schedule.is_due(runner))
        self._handed = self.space.hand()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        self._handed.release()
        if self.joint and self.schedule.is_due(runner):
            self._joint_step(runner, outputs)
        if self.every_n_train_iters(runner, self._every) or self.is_last_train_iter(
            runner
        ):
            record(runner, self, outputs)
        tenth = self.every_n_train_iters(runner, max(1, runner.max_iters // 10))
        if tenth and isinstance(runner.train_loop, IterBasedTrainLoop):
            preview(runner, self)

    def after_train_epoch(self, runner: Runner) -> None:
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            preview(runner, self)

    def before_val(self, runner: Runner) -> None:
        """With mixing 'sampled', what is evaluated is the net that would be chosen."""
        if hasattr(self, 'space'):
            choice = most_probable(self.space, self.tables)
            for group, j in zip(self.space.groups, choice, strict=True):
                group.relaxation.choice = j

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.finite.check(runner)
        state = dict(
            steps=self.steps,
            started_at=list(self.started_at),
            last=self.last,
            optimizer=self.optimizer.state_dict(),
        )
        if self.scheduler is not None:
            state['scheduler'] = self.scheduler.state_dict()
        if not self.joint:
            state['position'] = self.batches.position
        checkpoint[self.KEY] = copy.deepcopy(state)

    def after_train(self, runner: Runner) -> None:
        finish(runner, self)

    def bounds(self, runner: Runner, ahead: int = 0) -> list[float]:
        """B(t) of every budget in this iteration, or ``ahead`` architecture steps on.

        It shrinks from the end of the warm-up on, as the logits rest until then.
        """
        until = self.continuation - self.warmup if self.start == 'continuation' else 0.0
        moved = self.schedule.moved(runner, ahead)
        return bounds(self.tables, self.started_at, moved, until)

    def penalty(self, runner: Runner, probs: Sequence[Tensor] | None = None) -> Terms:
        """The terms of the objective beside the task loss, with the gradient of
        ``probs``; default: of the logits."""
        probs = self.space.probs() if probs is None else probs
        expected = self.tables.expected(probs)
        ratios = [
            e / limit for e, limit in zip(expected, self.bounds(runner), strict=True)
        ]
        return self.objective(probs, ratios, self.schedule.progress(runner))

    def _architecture_step(self, runner: Runner) -> None:
        model, wrapper = unwrapped(runner), runner.optim_wrapper
        logits, scale = self.space.logits, self._loss_scale(runner)
        set_gradients(logits, True)
        handed = self.space.hand()
        try:
            batch = next(self.batches)
            with wrapper.optim_context(model):
                data = model.data_preprocessor(batch, True)
                loss, _ = model.parse_losses(model._run_forward(data, mode='loss'))
            self.finite.watch(loss, batch)
            inputs = [*handed.leaves, *logits]
            grads = torch.autograd.grad(loss * scale, inputs, allow_unused=True)
            count = len(handed.leaves)
            task = task_gradient(logits, handed, grads[:count], grads[count:])
            terms = self.penalty(runner, handed.probs)
            grads = with_penalties(logits, handed, task, terms, loss, scale)
        finally:
            handed.release()
            set_gradients(logits, False)
        self._step(runner, grads, scale)
        self._note(dict(terms.parts, arch_loss=loss))

    def _joint_step(self, runner: Runner, outputs: dict | None) -> None:
        loss = outputs['loss'] if self.objective.multiplies else None
        self._joint.note(self._handed, loss)
        if not runner.optim_wrapper.should_update():
            return  # in the middle of gradient accumulation
        task, loss = self._joint.take()
        terms = self.penalty(runner, self._handed.probs)
        logits = self.space.logits
        grads = with_penalties(logits, self._handed, task, terms, loss, self._scale)
        set_gradients(logits, False)
        self._step(runner, grads, self._scale)
        self._note(terms.parts)

    @property
    def last(self) -> dict[str, float]:
        """The penalties of the last architecture step, and its loss."""
        names, values = self._last
        return dict(zip(names, values.result().tolist(), strict=True))

    def _note(self, scalars: dict[str, Any]) -> None:
        values = [torch.as_tensor(v).detach().double() for v in scalars.values()]
        stacked = torch.stack(values) if values else torch.zeros(0)
        self._last = tuple(scalars), Fetch(stacked)

    def _loss_scale(self, runner: Runner) -> Tensor | float:
        return loss_scale(runner.optim_wrapper, self.space.logits[0].device)

    def _step(
        self, runner: Runner, grads: Sequence[Tensor | None], scale: Tensor | float
    ) -> None:
        """One step of the logits that stays inside the bounds of the next one."""
        logits = self.space.logits
        mean = mean_gradients(logits, grads, scale)
        if mean is None:
            return
        self.finite.check(runner)
        step_logits(self.optimizer, logits, mean)
        project(self.space, self.tables, self.bounds(runner, ahead=1))
        self.space.fetch()
        if self.scheduler is not None:
            self.scheduler.step()
        self.steps += 1
