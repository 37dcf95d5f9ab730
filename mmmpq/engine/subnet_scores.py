"""What subnets of a supernet score; each is measured once, and kept in a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from rich.console import Console

from mmmpq.baselines.measurements import digest
from mmmpq.engine.batches import unwrapped
from mmmpq.engine.subnet_evaluation import LOSS, Measure, SubnetMeter
from mmmpq.engine.supernet import supernet_runner
from mmmpq.subnets.measured import Samples
from mmmpq.subnets.space import Subnet, SubnetSpace
from mmmpq.visualization.progress import progress_bar

DATA = ('train_dataloader', 'val_dataloader', 'val_evaluator')
Metrics = dict[str, float]


class SubnetScores:
    """Measures subnets and says what is to be large.

    Args:
        cfg: Config of the supernet, with a seed.
        checkpoint: Its weights.
        work_dir: Where files of measurements go.
        console: Where progress is shown.
        metric: To maximise; default: the first that is reported.
        processes: That measure at a time.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        work_dir: Path,
        console: Console,
        metric: str | None = None,
        processes: int = 1,
    ) -> None:
        self.work_dir, self.console, self.wanted = work_dir, console, metric
        data = {k: v for k, v in cfg.to_dict().items() if k in DATA}
        runner = supernet_runner(cfg, checkpoint)
        self.model = unwrapped(runner)
        self.space = SubnetSpace(self.model)
        self.meter = SubnetMeter(runner, checkpoint, processes)
        self.metric = LOSS
        self._known = {
            'model': type(self.model).__name__,
            'weights': digest(self.model),  # before calibration adds to them
            'genes': {g: list(map(str, v)) for g, v in self.space.genes.items()},
            **data,
        }
        self._seed = cfg.randomness.seed

    def input_shape(self, measure: Measure) -> tuple[int, ...]:
        """(C, H, W) of the first image that is measured on."""
        return self.meter.evaluation(measure).input_shape()

    def measure(
        self,
        title: str,
        subnets: Sequence[Subnet],
        measure: Measure,
        file: str | None = None,
    ) -> tuple[list[Metrics], np.ndarray]:
        """Metrics and scores (n,) of subnets; what is in ``<file>.jsonl`` (default: the
        title) is not measured again."""
        samples = Samples(
            self.work_dir / f'{file or title}.jsonl', self._settings(measure)
        )
        todo = samples.missing(subnets)
        with progress_bar(self.console, title, len(subnets)) as bar:
            done = len(subnets) - len(todo)
            bar(done)
            for subnet, metrics in zip(todo, self.meter(todo, measure), strict=True):
                if not measure.loss and metrics:
                    self._name_metric(metrics)  # not only after an hour
                samples[subnet] = metrics
                done += 1
                bar(done)
        metrics = [samples[s] for s in subnets]
        return metrics, self._scores(metrics, measure.loss)

    def close(self) -> None:
        self.meter.close()

    def _settings(self, measure: Measure) -> dict[str, Any]:
        """What measurements depend on."""
        return {
            **self._known,
            'calibration batches': measure.batches,
            'validation images': measure.images or 'all',
            'measure': LOSS if measure.loss else 'metric',
            'seed': self._seed,
        }

    def _scores(self, metrics: Sequence[Metrics], loss: bool) -> np.ndarray:
        """What is to be large. A detector that finds nothing reports no mAP: 0."""
        if loss:
            return np.array([-m[LOSS] for m in metrics])
        self._name_metric(max(metrics, key=len))
        return np.array([m.get(self.metric, 0.0) for m in metrics])

    def _name_metric(self, metrics: Metrics) -> None:
        """Sets the metric that is maximised."""
        self.metric = self.wanted or next(iter(metrics), '')
        if self.metric not in metrics:
            raise ValueError(
                f'--metric: found {self.metric!r}; accepted are {", ".join(metrics)}'
            )
