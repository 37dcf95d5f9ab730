"""Subnets of one supernet, calibrated and measured one after the other."""

import contextlib
import copy
import io
import multiprocessing
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from torch import nn

from mmmpq.engine.batches import train_batches, unwrapped
from mmmpq.engine.evaluation import count_only
from mmmpq.engine.supernet import supernet_runner
from mmmpq.models import calibrate_subnet
from mmmpq.models.task_loss import mean_loss
from mmmpq.subnets.space import Subnet, SubnetSpace
from mmmpq.user_config import type_name

LOSS = 'loss'


@dataclass(frozen=True)
class Measure:
    """How a subnet is measured.

    Args:
        batches: Training batches that its statistics are calibrated on.
        images: Images of the validation set, evenly spaced over it; None: all.
        loss: The task loss on them in place of the metrics.
    """

    batches: int
    images: int | None = None
    loss: bool = False


class SubnetEvaluation:
    """Measures subnets by the toolbox's own evaluator, or by the task loss.

    Nothing is trained. Where not all images are used they are read once and kept.

    Args:
        runner: A runner with the supernet and its weights.
        measure: How to measure.

    Raises:
        ValueError: The config has nothing to validate on.
    """

    def __init__(self, runner: Runner, measure: Measure) -> None:
        if not runner.cfg.get('val_dataloader') or not runner.cfg.get('val_evaluator'):
            raise ValueError(
                'val_dataloader: the config has none, or no val_evaluator; subnets are '
                'measured on the validation set'
            )
        self.measure = measure
        self.model = unwrapped(runner)
        self.space = SubnetSpace(self.model)
        self.calibration = train_batches(runner, measure.batches)
        cfg = copy.deepcopy(runner.cfg)
        if measure.loss:
            _annotations_first(cfg.val_dataloader.dataset)
        self.batches: Any = Runner.build_dataloader(cfg.val_dataloader, runner.seed)
        dataset = self.batches.dataset
        self.evaluator = runner.build_evaluator(cfg.val_evaluator)
        self.evaluator.dataset_meta = getattr(dataset, 'metainfo', None)
        if measure.images is not None and measure.images < len(dataset):
            every = len(dataset) / measure.images
            dataset.get_subset_([int(i * every) for i in range(measure.images)])
            count_only(self.evaluator, dataset)
            cfg.val_dataloader.dataset = dataset
            self.batches = list(
                Runner.build_dataloader(dict(cfg.val_dataloader), runner.seed)
            )
        self.count = len(dataset)

    def __call__(self, subnet: Subnet) -> dict[str, float]:
        """The metrics of a subnet, or its task loss under the name 'loss'."""
        self.space.activate(subnet)
        calibrate_subnet(self.model, self.calibration)
        self.model.eval()
        if self.measure.loss:
            with _losses(self.model):
                return {LOSS: mean_loss(self.model, self.batches)}
        with torch.no_grad():
            for batch in self.batches:
                outputs = self.model.val_step(batch)
                self.evaluator.process(data_samples=outputs, data_batch=batch)
        with contextlib.redirect_stdout(io.StringIO()):  # COCO's evaluation prints
            metrics = self.evaluator.evaluate(self.count)
        return {name: float(value) for name, value in metrics.items()}

    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of the first validation images, preprocessed."""
        data = self.model.data_preprocessor(next(iter(self.batches)), False)
        return tuple(data['inputs'].shape[1:])


def _annotations_first(dataset: dict[str, Any]) -> None:
    """Moves LoadAnnotations right behind the image's loading, in wrapped datasets too.

    Pipelines that only evaluate load the ground truth after the image was resized; it
    stays as it is in the file then, which suits a metric but not a loss.
    """
    for inner in (dataset.get('dataset'), *(dataset.get('datasets') or ())):
        if inner:
            _annotations_first(inner)
    pipeline = dataset.get('pipeline') or []
    kinds = [type_name(t) for t in pipeline]
    image = next((i for i, k in enumerate(kinds) if 'LoadImage' in k), len(kinds))
    for i, kind in enumerate(kinds):
        if i > image and kind == 'LoadAnnotations':
            pipeline.insert(image + 1, pipeline.pop(i))


@contextlib.contextmanager
def _losses(model: nn.Module) -> Iterator[None]:
    """Within it what computes a loss does so as in training: mmdet's heads decode
    otherwise when they evaluate. Layers and their statistics stay as they are."""
    heads = [m for m in model.modules() if hasattr(m, 'loss')]
    for head in heads:
        head.training = True
    try:
        yield
    finally:
        for head in heads:
            head.training = False


class SubnetMeter:
    """Measures many subnets, in this process or in several others.

    Args:
        runner: A runner with the supernet and its weights.
        checkpoint: Those weights, from which other processes build theirs.
        processes: How many measure at a time; if there are several accelerators, they
            share them.
    """

    def __init__(self, runner: Runner, checkpoint: str, processes: int = 1) -> None:
        self.runner, self.checkpoint, self.processes = runner, checkpoint, processes
        self._pool: ProcessPoolExecutor | None = None
        self._evaluations: dict[Measure, SubnetEvaluation] = {}

    def evaluation(self, measure: Measure) -> SubnetEvaluation:
        """What measures in this process."""
        if measure not in self._evaluations:
            self._evaluations[measure] = SubnetEvaluation(self.runner, measure)
        return self._evaluations[measure]

    def __call__(
        self, subnets: Sequence[Subnet], measure: Measure
    ) -> Iterator[dict[str, float]]:
        """The metrics of subnets in their order, as soon as they are known."""
        if min(self.processes, len(subnets)) < 2:
            yield from map(self.evaluation(measure), subnets)
            return
        if self._pool is None:
            context = multiprocessing.get_context('spawn')
            started = context.Value('i', 0)
            args = started, self.processes, self.runner.cfg, self.checkpoint
            self._pool = ProcessPoolExecutor(self.processes, context, _start, args)
        try:
            yield from self._pool.map(_measured, [(measure, s) for s in subnets])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends the other processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


_meter: SubnetMeter | None = None  # of a process that was started


def _start(started: Any, processes: int, cfg: Config, checkpoint: str) -> None:
    global _meter
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        # MMEngine sets the way in which loaders start processes, and says so.
        warnings.filterwarnings('ignore', 'Multi-processing start method')
        _meter = SubnetMeter(supernet_runner(cfg, checkpoint), checkpoint)


def _measured(task: tuple[Measure, Subnet]) -> dict[str, float]:
    assert _meter is not None
    return _meter.evaluation(task[0])(task[1])
