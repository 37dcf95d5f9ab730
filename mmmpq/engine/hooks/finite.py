"""Stops a run whose loss is no number any more."""

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from mmmpq.engine.batches import unwrapped
from mmmpq.quantizers import Quantizer
from mmmpq.registry import HOOKS
from mmmpq.transfer import Fetch


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops the run at a non-finite loss and names the first layer concerned.

    A loss is looked at before the weights take the step that it would spoil: what is in
    memory and on disk stays good. Whether it is finite is copied from the device as
    soon as it is known, while the backward pass is computed.
    """

    priority = 'HIGHEST'

    def __init__(self) -> None:
        self._watched: list[tuple[Fetch, Tensor, Any]] = []
        self._batch: Any = None

    def before_train(self, runner: Runner) -> None:
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapperDict):
            return  # several optimizers: their model decides what is a loss
        update = wrapper.update_params

        def watched_update(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            self.watch(loss, self._batch)
            update(loss, *args, **kwargs)

        wrapper.update_params = watched_update
        wrapper.optimizer.register_step_pre_hook(lambda *_: self.check(runner))

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        self.check(runner)  # the loss scaler of fp16 may have left the step out
        self._batch = data_batch

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        self.check(runner)

    def watch(self, loss: Tensor, batch: Any) -> None:
        """Has a loss looked at in the next :meth:`check`."""
        loss = loss.detach()
        self._watched.append((Fetch(torch.isfinite(loss).all()), loss, batch))

    def check(self, runner: Runner) -> None:
        """Raises FloatingPointError if a loss watched since the last time is bad."""
        watched, self._watched = self._watched, []
        for finite, loss, batch in watched:
            if not bool(finite.result()):
                stop_at_non_finite(runner, batch, float(loss.sum()))


def stop_at_non_finite(runner: Runner, batch: Any, loss: float) -> None:
    """Raises FloatingPointError that names the first layer that is not finite."""
    model = unwrapped(runner)
    name = first_non_finite(model, batch)
    raise FloatingPointError(
        f'the loss became {loss} at iteration {runner.iter}; the first layer with a '
        f'non-finite value is {name}. No checkpoint was written since; the last good '
        f'one is in {runner.work_dir}. A smaller learning rate or '
        'optim_wrapper.clip_grad often helps'
    )


@torch.no_grad()
def first_non_finite(model: nn.Module, batch: Any) -> str:
    """Name of the first layer, in the order of the forward pass, whose parameters or
    output are not finite for ``batch``; or a hint that it is none of them."""
    names = []

    def look(name: str, module: nn.Module, output: Any) -> None:
        tensors = [*module.parameters(recurse=False)]
        tensors += [output] if isinstance(output, Tensor) else []
        if not names and not all(torch.isfinite(t).all() for t in tensors):
            names.append(name)

    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: look(name, m, o))
        for name, module in model.named_modules()
        if not isinstance(module, Quantizer)  # its layer is named instead
        and (not list(module.children()) or list(module.parameters(recurse=False)))
    ]
    try:
        model._run_forward(model.data_preprocessor(batch, True), mode='loss')
    except Exception as error:  # a detector may refuse what is not finite
        names.append(f'unknown (the forward pass fails: {error})')
    finally:
        for handle in handles:
            handle.remove()
    return names[0] if names else 'none of the layers: look at the loss itself'
