"""What modules of a model, and the functions that they call, return, by place."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass
class _Frame:
    """A call of a module that goes on."""

    module: nn.Module
    place: str
    functions: bool
    mode: TorchFunctionMode | None
    counts: Counter = field(default_factory=Counter)


class Watch:
    """Hands float tensors to ``see`` as they are made; what it returns goes on.

    A place is 'module[k]' for what the k-th call of a module returns, or
    'module[k].function[n]' for what the n-th call of a function within it does. Calls
    are counted from 0 within a child of the model (backbone, neck, head): alike in
    training, in evaluation, in a model that is cut and for each part of an image.

    Args:
        see: Given a place and the tensor, of any shape.
    """

    def __init__(self, see: Callable[[str, Tensor], Tensor]) -> None:
        self.see = see
        self.frames: list[_Frame] = []
        self.calls: Counter = Counter()

    def add(self, name: str, module: nn.Module, composed: bool, inside: bool) -> None:
        """Watches a module.

        Args:
            name: '' for the model itself.
            composed: Whether it is made of others.
            inside: Whether to see the functions that it calls, or what it returns. What
                is called by another module that is watched is seen there.
        """
        begins = not name or (composed and '.' not in name)
        module.register_forward_pre_hook(partial(self._enter, name, begins, inside))
        module.register_forward_hook(self._leave, always_call=True)

    def _enter(
        self, name: str, begins: bool, functions: bool, module: nn.Module, _: Any
    ) -> None:
        if begins or not self.frames:
            self.calls.clear()
        again = not self.frames and torch._C._current_graph_task_id() != -1
        mode = None
        if functions and all(frame.mode is None for frame in self.frames):
            mode = _Functions(self)
            mode.__enter__()
        place = f'{name}[{self.calls[name]}]'
        self.frames.append(_Frame(module, place, functions, mode))
        self.calls[name] += 1
        if again:
            raise RuntimeError(
                f'quant.target: found {name} computed again in the backward pass, as a '
                'part of a module, where tensors between layers would stay float; '
                'accepted is with_cp=False, without activation_checkpointing'
            )

    def _leave(self, module: nn.Module, args: Any, out: Any) -> Any:
        if not self.frames or self.frames[-1].module is not module:
            return None  # another hook has failed before the call began
        frame = self.frames.pop()
        if frame.mode is not None:
            frame.mode.__exit__(None, None, None)
        return None if frame.functions else self._seen(frame.place, out)

    def called(self, function: str, out: Any) -> Any:
        """A function has returned ``out``, in the innermost call that goes on."""
        frame = self.frames[-1]
        if not frame.functions or not _is_float(out):
            return out
        place = f'{frame.place}.{function}[{frame.counts[function]}]'
        frame.counts[function] += 1
        return self._seen(place, out)

    def _seen(self, place: str, out: Any) -> Any:
        return self.see(place, out) if _is_float(out) else out


def parts_of(model: nn.Module) -> Iterator[tuple[str, nn.Module, bool]]:
    """Name and module of all that a model is made of, each once, and whether it is
    made of others; layers, with their quantizers, are not."""
    inside: set[int] = set()
    for name, module in model.named_modules():
        if id(module) in inside:
            continue
        is_layer = hasattr(module, 'a_quantizer')
        if is_layer:
            inside.update(id(part) for part in module.modules() if part is not module)
        yield name, module, not is_layer and any(True for _ in module.children())


def _is_float(out: Any) -> bool:
    return isinstance(out, Tensor) and out.is_floating_point()


class _Functions(TorchFunctionMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return self.watch.called(func.__name__.strip('_'), out)
