"""The gradient search inside the toolbox's own training loop."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS
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
from mmmpq.hooks.search_result import finish, preview
from mmmpq.models import calibrate
from mmmpq.registry import HOOKS, LOSSES, build
from mmmpq.search import (
    STARTS,
    SearchSpace,
    bias_logits,
    bounds,
    cost_tables,
    most_probable,
    project,
)

RECORDS = 200  # about as many lines of history, whatever the length of the search
PENALTIES = (dict(type='BarrierPenalty'), dict(type='Prob1Regularizer'))
ADAM = dict(type='Adam', lr=0.1, betas=(0.5, 0.999))


@HOOKS.register_module()
class SearchHook(Hook):
    """Searches the precisions of a supernet under budgets while it trains.

    After a warm-up, every ``interval`` iterations, a step on the logits alone: the task
    loss on a held-out batch plus the penalties. Then the toolbox's loop takes its
    weight step as always. At the end the most probable policy inside every budget is
    solved for and written, with the weights that go with it.

    The barrier alone would let a step of the optimizer jump over it: where one does,
    the logits are moved back to the nearest ones inside, so that E[B] stays below the
    bound throughout. The architecture step leaves weights and their gradients alone;
    BatchNorm's running statistics see its batches as well.

    Source: Search What You Want: Barrier Panelty NAS for Mixed Precision Quantization,
    2020, arXiv 2007.10026; the feasible start, the schedules and the solver are ours.

    Args:
        budgets: Configs of :class:`mmmpq.costs.Budget`; at least one.
        penalties: Configs of losses on the probabilities. Default: ``BarrierPenalty``
            and ``Prob1Regularizer``.
        optimizer: Config of the optimizer of the logits. Default: Adam, lr 0.1.
        scheduler: Config of its learning rate schedule, in architecture steps.
        clip_grad: As of ``OptimWrapper``, for the logits.
        held_out: Share of the training set for the architecture step, or the config of
            a dataset of its own.
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
            what the most probable policy leaves of the budgets; 0 leaves it unspent.
    """

    priority = 'NORMAL'
    KEY = 'mmmpq_search'

    def __init__(
        self,
        budgets: Sequence[dict],
        penalties: Sequence[dict] = PENALTIES,
        optimizer: dict | None = None,
        scheduler: dict | None = None,
        clip_grad: dict | None = None,
        held_out: float | dict = 0.2,
        warmup: float = 0.1,
        interval: int = 1,
        joint: bool = False,
        start: str = 'continuation',
        margin: float = 0.02,
        continuation: float = 0.6,
        calibration: int = 8,
        measure: int = 2,
    ) -> None:
        if not budgets:
            raise ValueError(
                'SearchHook.budgets: found none; accepted is a list such as '
                "[dict(type='BOPs', limit='W4A4')]"
            )
        if start not in STARTS:
            raise ValueError(f'SearchHook.start: found {start!r}; accepted: {STARTS}')
        if not 0 <= warmup < 1:
            raise ValueError(
                f'SearchHook.warmup: found {warmup!r}; accepted are shares from 0 to 1'
            )
        if start == 'continuation' and not warmup < continuation <= 1:
            raise ValueError(
                f'SearchHook.continuation: found {continuation!r}; accepted are shares '
                f'of the search above warmup={warmup} and up to 1'
            )
        if interval < 1:
            raise ValueError(f'SearchHook.interval: found {interval!r}; at least 1')
        self.budgets = [Budget.build(b) for b in budgets]
        self.penalties = [build(LOSSES, p) for p in penalties]
        self.optimizer_cfg = dict(optimizer or ADAM)
        self.scheduler_cfg = scheduler
        self.clip_grad = clip_grad
        self.held_out = held_out
        self.warmup = warmup
        self.interval = interval
        self.joint = joint
        self.start = start
        self.margin = margin
        self.continuation = continuation
        self.calibration = calibration
        self.measure = measure
        # Not registered with the runner: that would insert it before this hook while
        # the runner goes through its hooks, which then calls this one twice.
        self.finite = FiniteLossHook()
        self._resumed: dict | None = None
        self._last: dict[str, Any] = {}

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
        self.generator = torch.Generator()
        self.history = History(runner.work_dir)
        if not self.joint:
            loader = hold_out(runner, self.held_out)
            self.batches = Batches(loader, seed=runner.seed or 0)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._resumed = checkpoint.get(self.KEY) if runner._resume else None

    def before_train(self, runner: Runner) -> None:
        if self._resumed is None:
            self._begin(runner)
        self.optimizer = self._build_optimizer()
        self.scheduler = self._build_scheduler(runner)
        self._every = max(1, runner.max_iters // RECORDS)
        if self._resumed is not None:
            self.started_at = list(self._resumed['started_at'])
            self.steps = self._resumed['steps']
            self._last = self._resumed['last']
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
            self._collect_joint_gradients()
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
            self.started_at = [
                float(t.expected(self.space.probs())) for t in self.tables
            ]
        if dist.is_main_process():
            self._begin_history()
        for t in self.tables:
            unit = t.budget.cost.unit
            runner.logger.info(
                f'Budget {t.name} {t.budget.limit!r}: {t.limit:.6g} {unit}, '
                f'candidates span [{t.min:.6g}, {t.max:.6g}] {unit}'
            )

    def _begin_history(self) -> None:
        self.history.begin(self.space, self.tables, self.interval)

    def _build_optimizer(self) -> OptimWrapper:
        cfg = dict(self.optimizer_cfg, params=self.space.logits)
        clip_grad = self.clip_grad and dict(self.clip_grad)
        wrapper = OptimWrapper(OPTIMIZERS.build(cfg), clip_grad=clip_grad)
        wrapper.grad_name = 'arch_grad_norm'
        return wrapper

    def _build_scheduler(self, runner: Runner) -> Any:
        if self.scheduler_cfg is None:
            return None
        cfg = dict(self.scheduler_cfg, by_epoch=False)
        if cfg['type'].endswith('CosineAnnealingLR'):
            window, first = self._windows(runner)
            active = runner.max_iters / window - first
            cfg.setdefault('T_max', math.ceil(active / self.interval))
        return PARAM_SCHEDULERS.build(cfg, default_args=dict(optimizer=self.optimizer))

    # --- training -----------------------------------------------------------------

    def before_train_epoch(self, runner: Runner) -> None:
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            reseed(runner, runner.epoch)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        self.finite.before_train_iter(runner, batch_idx, data_batch)
        self.generator.manual_seed((runner.seed or 0) + 104_729 * runner.iter)
        self.space.draw(self.generator)
        if not self.joint and self._is_due(runner):
            self._architecture_step(runner)
        if self.joint:
            self._scale = _loss_scale(runner.optim_wrapper)
            self._set_gradients(self._is_due(runner))

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        if self.joint and self._is_due(runner):
            self._joint_step(runner, outputs)
        if self.every_n_train_iters(runner, self._every) or self.is_last_train_iter(
            runner
        ):
            self._record(runner, outputs)
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
            last={k: float(v) for k, v in self._last.items()},
            optimizer=self.optimizer.state_dict(),
        )
        if self.scheduler is not None:
            state['scheduler'] = self.scheduler.state_dict()
        if not self.joint:
            state['position'] = self.batches.position
        checkpoint[self.KEY] = copy.deepcopy(state)

    def after_train(self, runner: Runner) -> None:
        finish(runner, self)

    def progress(self, runner: Runner) -> float:
        """Share of the search that is done, 0 to 1."""
        return runner.iter / max(1, runner.max_iters - 1)

    def bounds(self, runner: Runner, ahead: int = 0) -> list[float]:
        """B(t) of every budget at this iteration, or ``ahead`` iterations from now.

        It shrinks from the end of the warm-up on, as the logits rest until then.
        """
        window, first = self._windows(runner)
        moved = max(0, runner.iter + ahead - first * window)
        until = self.continuation - self.warmup if self.start == 'continuation' else 0.0
        return bounds(
            self.tables, self.started_at, moved / max(1, runner.max_iters - 1), until
        )

    def _is_due(self, runner: Runner) -> bool:
        window, first = self._windows(runner)
        since = runner.iter // window - first
        return since >= 0 and since % self.interval == 0

    def _windows(self, runner: Runner) -> tuple[int, int]:
        """Iterations in which the logits step once, and the first such window."""
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        window = accumulated if self.joint else 1
        return window, math.ceil(self.warmup * runner.max_iters / window)

    def penalty(self, runner: Runner) -> tuple[Tensor, dict[str, Tensor]]:
        """Their sum, a scalar with the logits' gradient, and each penalty by name."""
        probs = self.space.probs()
        limits = self.bounds(runner)
        ratios = torch.stack(
            [
                t.expected(probs) / limit
                for t, limit in zip(self.tables, limits, strict=True)
            ]
        ).float()
        progress = self.progress(runner)
        parts = {p.name: p(probs, ratios, progress) for p in self.penalties}
        return sum(parts.values(), ratios.new_zeros(())), parts

    def _set_gradients(self, on: bool) -> None:
        for logits in self.space.logits:
            logits.requires_grad_(on)

    def _architecture_step(self, runner: Runner) -> None:
        model, wrapper = unwrapped(runner), runner.optim_wrapper
        scale = _loss_scale(wrapper)
        self._set_gradients(True)
        try:
            batch = next(self.batches)
            with wrapper.optim_context(model):
                data = model.data_preprocessor(batch, True)
                loss, _ = model.parse_losses(model._run_forward(data, mode='loss'))
            self.finite.watch(loss, batch)
            penalty, parts = self.penalty(runner)
            grads = torch.autograd.grad(
                loss * scale + penalty * scale, self.space.logits, allow_unused=True
            )
        finally:
            self._set_gradients(False)
        self._step(runner, grads, scale)
        self._last = {k: v.detach() for k, v in dict(parts, arch_loss=loss).items()}

    def _step(
        self, runner: Runner, grads: Sequence[Tensor | None], scale: float
    ) -> None:
        """One step of the logits, with gradients averaged over the processes, that
        stays inside the bounds of the next one."""
        flat = torch.cat(
            [
                (torch.zeros_like(p) if g is None else g).float().flatten()
                for p, g in zip(self.space.logits, grads, strict=True)
            ]
        )
        dist.all_reduce(flat, op='mean')
        flat /= scale
        if scale != 1.0 and not bool(torch.isfinite(flat).all()):
            return  # fp16 overflowed: the loss scaler is about to shrink
        self.finite.check(runner)
        parts = flat.split([p.numel() for p in self.space.logits])
        for logits, grad in zip(self.space.logits, parts, strict=True):
            logits.grad = grad.view_as(logits).to(logits.dtype)
        self._set_gradients(True)  # clip_grad passes by what does not require them
        self.optimizer.step()
        self._set_gradients(False)
        for logits in self.space.logits:
            logits.grad = None
        ahead = self.interval * self._windows(runner)[0]
        project(self.space, self.tables, self.bounds(runner, ahead))
        if self.scheduler is not None:
            self.scheduler.step()
        self.steps += 1

    # --- joint mode ---------------------------------------------------------------

    def _collect_joint_gradients(self) -> None:
        """Takes the logits' gradients away before the weights' optimizer steps."""
        self._joint: list[Tensor | None] = [None] * len(self.space.logits)

        def take(index: int):
            def hook(param: Tensor) -> None:
                grad, before = param.grad, self._joint[index]
                self._joint[index] = grad if before is None else before + grad
                param.grad = None

            return hook

        for i, logits in enumerate(self.space.logits):
            logits.requires_grad_(True)
            logits.register_post_accumulate_grad_hook(take(i))
            logits.requires_grad_(False)

    def _joint_step(self, runner: Runner, outputs: dict | None) -> None:
        wrapper = runner.optim_wrapper
        if not wrapper.should_update():
            return  # in the middle of gradient accumulation
        scale = self._scale
        penalty, parts = self.penalty(runner)
        grads = torch.autograd.grad(penalty * scale, self.space.logits)
        task, self._joint = self._joint, [None] * len(grads)
        self._set_gradients(False)
        total = [
            g if t is None else g + t.float() for g, t in zip(grads, task, strict=True)
        ]
        self._step(runner, total, scale)
        self._last = {k: v.detach() for k, v in parts.items()}

    # --- records ------------------------------------------------------------------

    def _record(self, runner: Runner, outputs: dict | None) -> None:
        """Expected and realised cost, penalties and bits: to log, visualizer, file."""
        with torch.no_grad():
            probs = [p.detach() for p in self.space.probs()]
            expected = [float(t.expected(probs)) for t in self.tables]
        policy = self.space.policy(most_probable(self.space, self.tables))
        realised = [t.of(policy) for t in self.tables]
        values = [p.double().cpu().tolist() for p in probs]
        entropy = sum(-q * math.log(max(q, 1e-12)) for p in values for q in p)
        scalars = {k: float(v) for k, v in self._last.items()}
        scalars['entropy'] = entropy / len(values)
        for table, e, r in zip(self.tables, expected, realised, strict=True):
            scalars[f'{table.name}_expected'] = e / table.limit
            scalars[f'{table.name}_realised'] = r / table.limit
        for key, value in scalars.items():
            runner.message_hub.update_scalar(f'train/{key}', value)
        bits = {}
        for group, p in zip(self.space.groups, values, strict=True):
            for kind in ('w_bits', 'a_bits'):
                mean = sum(
                    q * getattr(c, kind)
                    for q, c in zip(p, group.candidates, strict=True)
                )
                bits[f'{kind}/{group.name}'] = mean
        if not dist.is_main_process():
            return
        runner.visualizer.add_scalars(bits, step=runner.iter + 1)
        loss = outputs.get('loss') if isinstance(outputs, dict) else None
        penalties = {
            p.name: scalars[p.name] for p in self.penalties if p.name in scalars
        }
        self.history.append(
            dict(
                iter=runner.iter,
                epoch=runner.epoch,
                loss=loss.item() if isinstance(loss, Tensor) else loss,
                penalties=penalties,
                expected=expected,
                realised=realised,
                bound=self.bounds(runner),
                probs={
                    g.name: p for g, p in zip(self.space.groups, values, strict=True)
                },
            )
        )


def _loss_scale(wrapper: OptimWrapper) -> float:
    """The present scale of an fp16 loss, 1 without one."""
    scaler = getattr(wrapper, 'loss_scaler', None)
    return float(scaler.get_scale()) if scaler is not None else 1.0
