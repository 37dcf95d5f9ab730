"""Calibration before a fixed-precision model is fine-tuned."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmmpq.hooks.held_out import train_batches, unwrapped
from mmmpq.layers import quantized_layers
from mmmpq.models import calibrate, recalibrate_batchnorm
from mmmpq.randomness import isolated_randomness
from mmmpq.registry import HOOKS


@HOOKS.register_module()
class CalibrationHook(Hook):
    """Quantizer ranges and BatchNorm statistics from the first training batches.

    Ranges that came with the checkpoint (``searched.pth``) are kept. BatchNorm is
    re-estimated as a true average, so that the very first evaluation, before any
    training, is one of the quantized net. A resumed run is left alone.

    Args:
        batches: Number of batches of the train dataloader.
        batchnorm: Whether to re-estimate BatchNorm.
    """

    def __init__(self, batches: int = 10, batchnorm: bool = True) -> None:
        if batches < 1:
            raise ValueError(f'CalibrationHook.batches: found {batches}; at least 1')
        self.batches = batches
        self.batchnorm = batchnorm

    def before_train(self, runner: Runner) -> None:
        if runner._resume:
            return
        model = unwrapped(runner)
        layers = quantized_layers(model).values()
        ready = all(
            q.calibrated for m in layers for q in (m.w_quantizer, m.a_quantizer)
        )
        batches = train_batches(runner, self.batches)
        with isolated_randomness():
            if not ready:
                calibrate(model, batches)
            if self.batchnorm:
                recalibrate_batchnorm(model, batches)
        runner.logger.info(
            f'Calibrated {len(layers)} quantized layers on {len(batches)} batches'
            + (' (ranges were there already)' if ready else '')
        )
