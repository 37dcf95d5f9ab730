"""Whether the checkpoint that a Runner has loaded is one of its net."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel
from mmengine.runner import Runner

from mmmpq.engine.batches import unwrapped
from mmmpq.models.loading import check_some, load_whole


class WholeCheckpointHook(Hook):
    """Refuses a checkpoint that is not wholly the net's, before a test or a resume, and
    one of which nothing is, before a training.

    MMEngine loads what fits of it; ranges that are not in it would be fitted to the
    images of the test.

    Args:
        key: What named the checkpoint, for the messages of errors.
    """

    priority = 'VERY_HIGH'

    def __init__(self, key: str = 'checkpoint') -> None:
        self.key = key
        self._loaded: dict[str, Any] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self._loaded = checkpoint
        meta = checkpoint.get('meta') or {}
        if runner._resume and not (
            'message_hub' in checkpoint and {'epoch', 'iter'} <= set(meta)
        ):
            raise ValueError(
                f'{self.key}: {runner._load_from} is no checkpoint of a training: it '
                'says not how far it came; accepted is one that a run wrote. To start '
                'from its weights give it as load_from, without resume'
            )

    def before_test(self, runner: Runner) -> None:
        self._check(runner)

    def before_train(self, runner: Runner) -> None:
        if runner._resume:
            self._check(runner)
        elif self._loaded is not None:  # what is missing is trained
            check_some(unwrapped(runner), self._loaded, runner._load_from)
            self._loaded = None

    def _check(self, runner: Runner) -> None:
        """Once: what comes later may change the net."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            model = unwrapped(runner)
            model = model.module if isinstance(model, BaseTTAModel) else model
            load_whole(model, loaded, runner._load_from, self.key)
