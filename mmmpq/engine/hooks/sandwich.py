"""The sandwich rule: several subnets of a supernet in every step of its training."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine import dist
from mmengine.runner import Runner
from torch import Tensor, nn

from mmmpq.arguments import check_least
from mmmpq.engine.batches import one_optimizer, train_batches, unwrapped
from mmmpq.engine.distillation import Distillation, check_match
from mmmpq.engine.hooks.training import TrainingHook
from mmmpq.engine.subnet_metrics import SubnetMetrics
from mmmpq.layers.idle import with_idle
from mmmpq.models import calibrate
from mmmpq.registry import HOOKS
from mmmpq.subnets import Subnet, SubnetSpace


@HOOKS.register_module()
class SandwichHook(TrainingHook):
    """Trains the smallest, the largest and some random subnets in each iteration.

    Every subnet has its pass on the same batch, and the gradients are summed: all but
    one before the loop's own pass, in which the largest one takes its turn, and which
    then steps. So accumulation, clipping, mixed precision and DDP stay the toolbox's.
    The subnets of an iteration follow from the seed and its number: they are the same
    in all processes, and after a resume.

    BatchNorm keeps its momentum and sees every pass: its running statistics are a blend
    of all subnets that fits none of them. What is evaluated is calibrated before, on
    training batches: in a validation or test the largest net at each of the
    precisions that all groups share, and in an elastic model the smallest net. Metrics
    of the dearest bear the toolbox's names, those of the others the subnet's in front.

    Source: BatchQuant: Quantized-for-all Architecture Search with Robust Quantizer,
    2021, arXiv 2105.08952, with four random nets and the teacher; the sandwich rule:
    Universally Slimmable Networks and Improved Training Techniques, 2019, arXiv
    1903.05134.

    Args:
        random: Random subnets in an iteration.
        one_precision: Whether these have one precision everywhere in place of
            independent ones.
        one_precision_ends: Whether the smallest and the largest net have one random
            precision everywhere in place of the smallest and the largest one.
        free: Patterns of genes of which these two draw one random value for the whole
            net. Both defaults are as in the authors' code.
        teacher: ``config`` and ``checkpoint`` of a float net to learn from; None for
            the labels alone. See :class:`mmmpq.engine.distillation.Distillation`.
        distill: Weight of that term.
        match: Outputs that are compared with the teacher's.
        calibration: Training batches that quantizers start from, and that a subnet is
            calibrated on.

    Raises:
        ValueError: A negative number, several optimizers, a model without subnets, a
            teacher that does not match.
    """

    priority = 'NORMAL'

    def __init__(
        self,
        random: int = 4,
        one_precision: bool = False,
        one_precision_ends: bool = True,
        free: Sequence[str] = ('*kernel*',),
        teacher: Mapping[str, Any] | None = None,
        distill: float = 1.0,
        match: Mapping[str, str] | None = None,
        calibration: int = 30,
    ) -> None:
        super().__init__()
        check_least(
            'SandwichHook',
            random=(random, 0),
            calibration=(calibration, 1),
            distill=(distill, 0),
        )
        check_match(match, 'SandwichHook.match')
        self.random = random
        self.one_precision = one_precision
        self.one_precision_ends = one_precision_ends
        self.free = tuple(free)
        self.teacher = teacher
        self.distill = distill
        self.match = match
        self.calibration = calibration
        self._is_last_pass = False
        self._added: list[Any] = []  # what hangs on the model while it trains

    def before_train(self, runner: Runner) -> None:
        one_optimizer(runner, 'SandwichHook')
        model = unwrapped(runner)
        self.space = SubnetSpace(model)
        self.generator = torch.Generator()
        seed = torch.tensor(runner.seed or 0)  # with diff_rank_seed it is a rank's own
        dist.broadcast(seed, src=0)
        self.seed = int(seed)
        if not runner._resume:
            calibrate(model, train_batches(runner, self.calibration))
        if self.teacher is not None:
            args = model, self.teacher, self.distill, self.match
            self._added.append(Distillation(*args))
        self._added.append(model.register_forward_hook(self._use_all_parameters))
        super().before_train(runner)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        super().before_train_iter(runner, batch_idx, data_batch)
        *others, largest = self.subnets(runner.iter)
        self._is_last_pass = False
        for subnet in others:
            self.space.activate(subnet)
            self._add_gradients(runner, data_batch)
        self.space.activate(largest)
        self._is_last_pass = True

    def subnets(self, iteration: int) -> list[Subnet]:
        """Those of an iteration in the order of their passes, the largest one last."""
        self.generator.manual_seed(self.seed + 104_729 * iteration)
        space, generator = self.space, self.generator
        random = [
            space.sample(generator, self.one_precision) for _ in range(self.random)
        ]
        ends = []
        for end in (space.smallest(), space.largest()):
            if self.one_precision_ends:
                end = space.uniform(end, space.draw_precision(generator))
            ends.append({**end, **space.draw_alike(self.free, generator)})
        return [ends[0], *random, ends[1]]

    def _add_gradients(self, runner: Runner, batch: Any) -> None:
        """One pass of the subnet that is active, which the wrapper does not count.

        It is that of the model without DDP: gradients stay where they are until the
        backward pass of the loop, in which all processes average their sums.
        """
        loss, wrapper = self.task_loss(runner, batch), runner.optim_wrapper
        count = wrapper._inner_count
        wrapper.backward(wrapper.scale_loss(loss))
        wrapper._inner_count = count

    def _use_all_parameters(self, model: nn.Module, args: tuple, losses: Any) -> Any:
        """Gives every parameter a gradient in the last pass, 0 if it takes no part.

        DDP averages what that pass reaches. Any other parameter would keep the sum of
        one process, and the processes would part.
        """
        if not self._is_last_pass or not isinstance(losses, dict):
            return losses
        name, loss = next((k, v) for k, v in losses.items() if 'loss' in k)
        first = loss if isinstance(loss, Tensor) else loss[0]
        used = with_idle(first, model.parameters())
        return {**losses, name: used if first is loss else [used, *loss[1:]]}

    def after_train(self, runner: Runner) -> None:
        for added in self._added:
            added.remove()

    # --- evaluation ---------------------------------------------------------------

    def before_val(self, runner: Runner) -> None:
        self.metrics = SubnetMetrics(runner, self.calibration)

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        self.metrics.add(runner.val_loop, metrics, 'val')

    def before_test(self, runner: Runner) -> None:
        self.metrics = SubnetMetrics(runner, self.calibration)

    def after_test_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        self.metrics.add(runner.test_loop, metrics, 'test')
