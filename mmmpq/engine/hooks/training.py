"""What hooks have in common that compute losses of their own in a training."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import Tensor

from mmmpq.engine.batches import (
    Reseeding,
    complete_float,
    reseed,
    unwrapped,
    warn_of_decay,
)
from mmmpq.engine.hooks.finite import FiniteLossHook
from mmmpq.engine.lr_schedule import warn_of_schedules
from mmmpq.models.task_loss import task_loss


class TrainingHook(Hook):
    """Stops at losses that are not finite, and has each batch be what it would be in a
    run that was never stopped.

    Attributes:
        finite: Not registered with the runner: that would insert it before this hook
            while the runner goes through its hooks, which then calls this one twice.
    """

    def __init__(self) -> None:
        self.finite = FiniteLossHook()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        complete_float(runner, checkpoint)

    def before_train(self, runner: Runner) -> None:
        """A subclass calls it once it has taken what batches it needs itself."""
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = Reseeding(loop.dataloader_iterator, runner)
        self.finite.before_train(runner)
        warn_of_decay(runner)
        warn_of_schedules(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            reseed(runner, runner.epoch)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        self.finite.before_train_iter(runner, batch_idx, data_batch)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.finite.check(runner)

    def task_loss(self, runner: Runner, batch: Any) -> Tensor:
        """That of the model, without DDP, in the precision of the training."""
        model = unwrapped(runner)
        with runner.optim_wrapper.optim_context(model):
            loss = task_loss(model, batch)
        self.finite.watch(loss, batch)
        return loss
