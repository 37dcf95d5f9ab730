"""The gradient search inside the toolbox's own training loop."""

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any

from mmengine import dist
from mmengine.runner import BaseLoop, IterBasedTrainLoop, Runner

from mmmpq.arguments import check_least
from mmmpq.baselines import fisher as fisher_scores
from mmmpq.costs import Budget
from mmmpq.engine.batches import (
    endless,
    hold_out,
    one_optimizer,
    train_batches,
    unwrapped,
)
from mmmpq.engine.hooks.training import TrainingHook
from mmmpq.engine.records import record
from mmmpq.engine.results import Preview, finish, keep, loss_on
from mmmpq.engine.resumed import resumed_state
from mmmpq.losses import Objective
from mmmpq.models import calibrate
from mmmpq.pace import paced
from mmmpq.registry import HOOKS
from mmmpq.search import History, Search, Settings
from mmmpq.search.logits import loss_scale
from mmmpq.search.settings import PENALTIES, budgets_of

RECORDS = 200  # about as many lines of history, whatever the length of the search


@HOOKS.register_module()
class SearchHook(TrainingHook):
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
        budgets: Configs of :class:`mmmpq.costs.Budget`, or texts ('W3A3', '12 MB').
            None are needed where a penalty prices the net itself
            (``ComplexityPenalty``, ``CostAwareLoss``): then there is no bound, and each
            group ends with its most probable candidate.
        penalties: Configs of losses on the probabilities. Default: ``BarrierPenalty``
            and ``Prob1Regularizer``.
        optimizer, scheduler, clip_grad: Of the logits, as are ``warmup``, ``interval``,
            ``joint``, ``start``, ``margin`` and ``continuation``: see
            :class:`mmmpq.search.Settings`.
        held_out: What the architecture step learns from: a share of the training set,
            which the weights then do not see; the config of a dataset of its own; or
            None, all of the training set in another order than that of the weights.
        calibration: Batches on which quantizer ranges are fitted.
        fisher: Of these, batches whose gradients give the logits their start
            (:mod:`mmmpq.baselines.fisher`); 0: all candidates are equally probable.
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
        budgets: Sequence[dict | str | Budget] = (),
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
        fisher: int = 0,
    ) -> None:
        super().__init__()
        check_least(
            'SearchHook',
            calibration=(calibration, 1),
            fisher=(fisher, 0),
            measure=(measure, 0),
            samples=(samples, 0),
        )
        if isinstance(held_out, Real) and not 0 < held_out < 1:
            raise ValueError(
                f'SearchHook.held_out: found {held_out!r}; accepted are a share '
                'between 0 and 1, the config of a dataset, and None'
            )
        self.settings = Settings(
            *(optimizer, scheduler, clip_grad, warmup, interval, joint, start, margin),
            continuation,
        )
        self.budgets = budgets_of(budgets, key='SearchHook.budgets')
        self.objective = Objective(penalties, 'SearchHook.penalties')
        self.settings.check('SearchHook', self.budgets, self.objective)
        self.joint = joint
        self.held_out = held_out
        self.calibration = calibration
        self.fisher = fisher
        self.measure = measure
        self.samples = samples
        self.search: Search | None = None
        self.preview = Preview()
        self._resumed: dict | None = None

    # --- set-up -------------------------------------------------------------------

    def before_run(self, runner: Runner) -> None:
        """Finds the groups, prices the candidates, checks the budgets, holds out."""
        if not isinstance(runner._train_loop, BaseLoop):
            return  # a test or validation of the supernet: nothing is searched
        one_optimizer(runner, 'SearchHook')
        self.search = Search(
            unwrapped(runner),
            self.budgets,
            self.objective,
            seed=runner.seed or 0,
            before_step=partial(self.finite.check, runner),
            log=runner.logger.info,
            **vars(self.settings),
        )
        self.history = History(runner.work_dir)
        if not self.joint:
            self.batches = endless(runner, hold_out(runner, self.held_out))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        super().after_load_checkpoint(runner, checkpoint)
        keys = ['steps', 'started_at', 'last', 'optimizer']
        keys += ['scheduler'] * bool(self.settings.scheduler)
        keys += ['position'] * (not self.joint)
        self._resumed = resumed_state(runner, checkpoint, self.KEY, keys)

    def before_train(self, runner: Runner) -> None:
        search, resumed, harms = self.search, self._resumed, None
        if resumed is None:
            runner.logger.info(
                f'Search: {len(search.space.groups)} groups, calibrating on '
                f'{self.calibration} batches'
            )
            batches = train_batches(runner, max(self.calibration, self.fisher))
            first = batches[: self.calibration]
            calibrate(search.model, paced(first, runner.logger.info, 'calibration'))
            if self.fisher:
                sample = batches[: self.fisher]
                harms = fisher_scores.measure(search.model, search.space, sample)
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        window = accumulated if self.joint else 1
        epoch = len(runner.train_loop.dataloader)
        search.begin(runner.max_iters, epoch, window, resumed, harms)
        if resumed is not None and not self.joint:
            self.batches.position = resumed['position']
        if dist.is_main_process() and not (
            resumed is not None and self.history.resume(runner.iter)
        ):
            self.history.begin(search)
        self._every = max(1, runner.max_iters // RECORDS)
        super().before_train(runner)

    # --- training -----------------------------------------------------------------

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        super().before_train_iter(runner, batch_idx, data_batch)
        search = self.search
        search.draw(runner.iter)
        due = search.is_due(runner.iter)
        if due:
            device = search.space.logits[0].device
            self._scale = loss_scale(runner.optim_wrapper, device)
        if due and not self.joint:
            search.step(
                runner.iter,
                lambda: self.task_loss(runner, next(self.batches)),
                self._scale,
            )
        search.hand(learn=due and self.joint)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        search, i = self.search, runner.iter
        search.release()
        if self.joint and search.is_due(i):
            loss = outputs['loss'] if search.objective.multiplies else None
            search.gather(loss)
            if runner.optim_wrapper.should_update():
                search.joint_step(i, self._scale)
        if self.every_n_train_iters(runner, self._every) or self.is_last_train_iter(
            runner
        ):
            record(runner, search, self.history, outputs)
        tenth = self.every_n_train_iters(runner, max(1, runner.max_iters // 10))
        if tenth and isinstance(runner.train_loop, IterBasedTrainLoop):
            self.preview(runner, search, self.is_last_train_iter(runner))

    def after_train_epoch(self, runner: Runner) -> None:
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            self.preview(runner, self.search, self.is_last_train_epoch(runner))

    def before_val(self, runner: Runner) -> None:
        """With mixing 'sampled', what is evaluated is the net that would be chosen."""
        if self.search is not None:
            self.search.space.take(self.search.most_probable())

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        super().before_save_checkpoint(runner, checkpoint)
        checkpoint[self.KEY] = self.search.state_dict()
        if not self.joint:
            checkpoint[self.KEY]['position'] = self.batches.position

    def after_train(self, runner: Runner) -> None:
        first = self.search.policy()
        keep(runner, self.search, first)  # what follows may fail
        choice = self.search.choose(
            self._loss_of_choice(runner), self.samples, self.measure > 0
        )
        finish(runner, self.search, self.search.policy(choice), first)

    def _loss_of_choice(self, runner: Runner) -> Callable[[], float] | None:
        """What a choice is measured by, if any: the task loss on held-out batches, or
        in joint mode on training ones."""
        if not self.samples and not (self.measure and self.budgets):
            return None
        count = max(1, self.measure)
        if self.joint:
            batches = train_batches(runner, count)
        else:
            batches = self.batches.take(count)
        return loss_on(unwrapped(runner), batches)
