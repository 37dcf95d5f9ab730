"""Metrics of several subnets of a supernet in one validation."""

from numbers import Number

from mmengine.runner import Runner, TestLoop, ValLoop

from mmmpq.engine.batches import train_batches, unwrapped
from mmmpq.models import calibrate_subnet
from mmmpq.randomness import isolated_randomness
from mmmpq.subnets import Subnet, SubnetSpace


class SubnetMetrics:
    """The largest net at each precision that all groups share, and the smallest one.

    Args:
        runner: Before a validation or test, in which the dearest of them has its turn.
        batches: Training batches that each one is calibrated on.
    """

    def __init__(self, runner: Runner, batches: int) -> None:
        self.runner = runner
        self.space = SubnetSpace(unwrapped(runner))
        self.batches = train_batches(runner, batches)
        self.subnets = subnets_to_evaluate(self.space)
        self._calibrate(self.subnets.pop(next(reversed(self.subnets))))

    def add(
        self, loop: ValLoop | TestLoop, metrics: dict[str, float] | None, mode: str
    ) -> None:
        """Evaluates the others and adds what is found to ``metrics`` and the log."""
        for name, subnet in self.subnets.items():
            self._calibrate(subnet)
            for i, batch in enumerate(loop.dataloader):
                loop.run_iter(i, batch)
            values = loop.evaluator.evaluate(len(loop.dataloader.dataset))
            for key, value in values.items():
                if metrics is not None:
                    metrics[f'{name}/{key}'] = value
                if isinstance(value, Number):
                    self.runner.message_hub.update_scalar(f'{mode}/{name}/{key}', value)

    def _calibrate(self, subnet: Subnet) -> None:
        self.space.activate(subnet)
        with isolated_randomness():
            calibrate_subnet(unwrapped(self.runner), self.batches)


def subnets_to_evaluate(space: SubnetSpace) -> dict[str, Subnet]:
    """The subnets by the name that their metrics bear, the dearest one last."""
    subnets = {str(p): space.largest(p) for p in space.precisions}
    if not subnets:
        subnets = dict(largest=space.largest())
    if space.architecture or not space.precisions:
        subnets = {'smallest': space.smallest(), **subnets}
    return subnets
