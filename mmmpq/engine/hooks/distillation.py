"""Distillation in a search, in fine-tuning, or in any training."""

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmmpq.arguments import check_least
from mmmpq.engine.batches import unwrapped
from mmmpq.engine.distillation import Distillation, check_match
from mmmpq.registry import HOOKS


@HOOKS.register_module()
class DistillationHook(Hook):
    """Adds to the losses how far the outputs are from those of a float net.

    In a search weights and logits both learn from it.

    Args:
        teacher: ``config`` and ``checkpoint`` of the float net, see
            :class:`mmmpq.engine.distillation.Distillation`.
        weight: Of the term.
        match: Outputs that are compared.

    Raises:
        ValueError: A negative weight, or a teacher that does not match.
    """

    def __init__(
        self,
        teacher: Mapping[str, Any],
        weight: float = 1.0,
        match: Mapping[str, str] | None = None,
    ) -> None:
        check_least('DistillationHook', weight=(weight, 0))
        check_match(match, 'DistillationHook.match')
        self.teacher, self.weight, self.match = teacher, weight, match

    def before_train(self, runner: Runner) -> None:
        self.distillation = Distillation(
            unwrapped(runner), self.teacher, self.weight, self.match
        )

    def after_train(self, runner: Runner) -> None:
        self.distillation.remove()
