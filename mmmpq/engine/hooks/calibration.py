"""Calibration before a fixed-precision model is fine-tuned, or tested."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner

from mmmpq.arguments import check_least
from mmmpq.engine.batches import (
    complete_float,
    train_batches,
    unwrapped,
    warn_of_decay,
)
from mmmpq.engine.launch import embed_policy
from mmmpq.engine.lr_schedule import warn_of_schedules
from mmmpq.layers import QuantLayer, quantized_layers, quantized_part
from mmmpq.models import calibrate, calibrate_subnet
from mmmpq.models.calibration import calibrate_blank
from mmmpq.pace import paced
from mmmpq.quantizers import Quantizer, per_subnet
from mmmpq.randomness import isolated_randomness
from mmmpq.registry import HOOKS


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Quantizer ranges and BatchNorm statistics from the first training batches.

    Ranges that came with the checkpoint (``searched.pth``) are kept. BatchNorm is
    re-estimated as a true average, so that the very first evaluation, before any
    training, is one of the quantized net. A resumed run is left alone.

    At the end of the training BatchNorm is estimated anew in the same way, as what its
    running statistics are a blend of are nets of some steps before (``final``).

    A net with :class:`mmmpq.quantizers.BatchQuantizer`, which computes on the ranges of
    each batch while it trains, is calibrated again after each epoch, and before an
    evaluation if it lacks statistics.

    Checkpoints name their policy, {name: [w_bits, a_bits]} in ``meta['policy']``, as
    ``searched.pth`` does: tools/export.py refuses those of another one.

    Args:
        batches: Number of batches of the train dataloader.
        batchnorm: Whether to re-estimate BatchNorm.
        final: Batches on which this is done again at the end of the training; 0: not.
    """

    def __init__(
        self, batches: int = 10, batchnorm: bool = True, final: int = 0
    ) -> None:
        check_least('CalibrationHook', batches=(batches, 1), final=(final, 0))
        self.batches = batches
        self.batchnorm = batchnorm
        self.final = final

    def before_run(self, runner: Runner) -> None:
        embed_policy(runner.cfg)  # whoever trains: checkpoints hold this config

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        complete_float(runner, checkpoint)

    def before_train(self, runner: Runner) -> None:
        warn_of_decay(runner)
        warn_of_schedules(runner)
        if runner._resume:
            return
        model = unwrapped(runner)
        layers = quantized_layers(model).values()
        quantizers = [m for m in model.modules() if isinstance(m, Quantizer)]
        ready = all(quantizer.calibrated for quantizer in quantizers)
        batches = train_batches(runner, self.batches)
        with isolated_randomness():
            if not ready:
                paced_batches = paced(batches, runner.logger.info, 'calibration')
                calibrate(model, paced_batches)
            if self.batchnorm or _lacks_statistics(runner):
                paced_batches = paced(batches, runner.logger.info, 'BatchNorm')
                calibrate_subnet(model, paced_batches, self.batchnorm)
        runner.logger.info(
            f'Calibrated {len(layers)} quantized layers on {len(batches)} batches'
            + (' (ranges were there already)' if ready else '')
        )

    def after_train_epoch(self, runner: Runner) -> None:
        # Before the epoch's checkpoint is written.
        calibrate_blank(unwrapped(runner))
        self._complete(runner, self.is_last_train_epoch(runner))

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop) and self.is_last_train_iter(runner):
            calibrate_blank(unwrapped(runner))
            self._complete(runner, last=True)

    def before_val(self, runner: Runner) -> None:
        self._complete(runner)

    def before_test(self, runner: Runner) -> None:
        self._complete(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        part = quantized_part(unwrapped(runner))
        checkpoint['meta']['policy'] = {
            name: list(layer.precision)
            for name, layer in quantized_layers(part).items()
            if isinstance(layer, QuantLayer)  # a supernet has no policy yet
        }

    def _complete(self, runner: Runner, last: bool = False) -> None:
        """Gathers statistics where some are missing, and those of the last net."""
        again = self.final if last else 0
        if again or _lacks_statistics(runner):
            batches = train_batches(runner, max(again, self.batches))
            with isolated_randomness():
                calibrate_subnet(unwrapped(runner), batches, self.batchnorm)


def _lacks_statistics(runner: Runner) -> bool:
    """Whether any range of a batch that training has used is to be calibrated."""
    return any(not q.calibrated for q in per_subnet(unwrapped(runner)))
