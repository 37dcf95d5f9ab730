"""Many policies of one supernet, each tested with the supernet's weights."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext

from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import nn
from torch.utils.data import Dataset

from mmmpq.engine.batches import train_batches, unwrapped
from mmmpq.layers import float_mode
from mmmpq.models import apply_policy, calibrate_subnet
from mmmpq.models.copying import copy_of
from mmmpq.policy import Policy
from mmmpq.post_training.front import metric_of


def evaluate_policies(
    runner: Runner,
    policies: Mapping[str, Policy | None],
    images: int = 0,
    batches: int = 10,
    console: Console | None = None,
    metric: str | None = None,
) -> list[dict[str, float]]:
    """Metrics of each policy, by the toolbox's own test loop and evaluator.

    Nothing is trained: the layers are cut down to their precision, and what
    depends on the precision (BatchNorm) is re-estimated on training batches.

    Args:
        runner: A runner with the supernet and its weights; its test loop is not built
            yet.
        policies: The policies by the name that the progress bar shows; None is the
            supernet with all its layers float.
        images: Only the first so many test images; 0: all.
        batches: Training batches that BatchNorm is re-estimated on.
        console: Where progress is shown.
        metric: That is to be among them.

    Raises:
        ValueError: The config has nothing to test on, or its evaluator does not give
            ``metric``, which the first test shows.
    """
    supernet = runner.model
    data = train_batches(runner, batches)
    evaluate = Evaluation(runner, images)
    results = []
    columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task('', total=len(policies) * evaluate.steps)
        evaluate.step = lambda: progress.advance(task)
        for name, policy in policies.items():
            progress.update(task, description=f'evaluating {name}')
            net = runner.model = copy_of(supernet)
            if policy is not None:
                apply_policy(net, policy)
            with float_mode(net) if policy is None else nullcontext():
                calibrate_subnet(unwrapped(runner), data)
                results.append(evaluate(net))
            if metric is not None:
                metric_of(metric, results[0])
    runner.model = supernet
    return results


class Evaluation:
    """Tests models in turn, by the test loop and evaluator of a runner.

    Args:
        runner: Its test loop is not built yet.
        images: Only the first so many test images; 0: all.

    Attributes:
        images: That are tested on.
        steps: Batches of one test.
        step: Called after each.

    Raises:
        ValueError: The config has nothing to test on.
    """

    def __init__(self, runner: Runner, images: int = 0) -> None:
        if runner._test_dataloader is None:
            raise ValueError('test_dataloader: the config has none; needed to evaluate')
        if images:
            runner._test_dataloader['dataset']['indices'] = images
        self.runner, self.loop = runner, runner.test_loop
        self.step: Callable[[], None] = lambda: None
        dataloader = self.loop.dataloader
        if images:
            count_only(self.loop.evaluator, dataloader.dataset)
        self.images, self.steps = len(dataloader.dataset), len(dataloader)
        runner.call_hook('before_run')  # hooks of the test ask for what it sets up
        runner.register_hook(_Steps(lambda: self.step()))

    def __call__(self, model: nn.Module) -> dict[str, float]:
        self.runner.model = model
        return {k: float(v) for k, v in self.loop.run().items()}


class _Steps(Hook):
    def __init__(self, step: Callable[[], None]) -> None:
        self.step = step

    def after_test_iter(self, *args, **kwargs) -> None:
        self.step()


def count_only(evaluator: Evaluator, dataset: Dataset) -> None:
    """COCO's metric would count images that were left out of ``dataset`` as missed."""
    for metric in evaluator.metrics:
        if getattr(metric, 'img_ids', ()) is None:
            metric.img_ids = [
                dataset.get_data_info(i)['img_id'] for i in range(len(dataset))
            ]
