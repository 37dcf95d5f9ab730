"""Linear layers that are not called: their parent hands their weight to ``F.linear``.

BEiT and Swin V2 do, as the bias of their ``qkv`` is put together of parts.
"""

from collections.abc import Iterator
from functools import cache
from inspect import unwrap
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def call_by_weight(model: nn.Module) -> None:
    """Has ``F.linear`` with a layer's weight call the layer, where its parent does so.

    The layer computes with the bias that it is handed, so that the float net gives what
    it gave. What looks at a weight in any other way gets the weight. The parents are
    those whose forward names ``weight`` and a linear layer among their children; that
    one stays that is called is no harm.
    """
    for module in list(model.modules()):
        layers = list(_named(module))
        if layers and not isinstance(module, _Parent):
            module.__class__ = _parent(type(module))
            for layer in layers:
                layer._called = False
                layer.register_forward_pre_hook(_enter)
                layer.register_forward_hook(_leave, always_call=True)


def _named(module: nn.Module) -> Iterator[nn.Linear]:
    """The children that the forward of ``module`` names, if it names a weight, too."""
    code = getattr(unwrap(type(module).forward), '__code__', None)
    names = code.co_names if code else ()
    for name, child in module.named_children() if 'weight' in names else ():
        if name in names and isinstance(child, nn.Linear):
            yield child


class _Parent:
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _Calls(self):
            return super().forward(*args, **kwargs)


@cache
def _parent(kind: type) -> type:
    about = dict(__module__=kind.__module__, __doc__=kind.__doc__)
    return type(kind.__name__, (_Parent, kind), about)


class _Calls(TorchFunctionMode):
    """``F.linear`` with the weight of a child is a call of the child."""

    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        children = [m for m in parent.children() if isinstance(m, nn.Linear)]
        self.layers = {id(m._parameters.get('weight')): m for m in children}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.linear:
            x, weight, bias = _arguments(*args, **kwargs)
            layer = self.layers.get(id(weight))
            if layer is not None and not layer._called:
                return _call(layer, x, bias)
        return func(*args, **kwargs)


def _arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return input, weight, bias


def _call(layer: nn.Linear, x: Tensor, bias: Tensor | None) -> Tensor:
    # An attribute of the object hides the parameter of that name.
    layer.__dict__['bias'] = bias
    try:
        return layer(x)
    finally:
        del layer.__dict__['bias']


def _enter(layer: nn.Linear, _: tuple) -> None:
    layer._called = True  # what it computes itself is no call


def _leave(layer: nn.Linear, *_: Any) -> None:
    layer._called = False
