"""Convolutions that pad by a rule of their own, as those of EfficientNet."""

from inspect import signature

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

_no: set[type] = set()  # classes that do something else


def pads_and_convolves(layer: nn.Module) -> bool:
    """Whether the own forward of a subclass of ``nn.Conv2d`` pads its input, convolves
    it with its weight and bias, and does nothing else. It is tried once per class."""
    kind = type(layer)
    own = getattr(kind, 'forward', None)
    if not isinstance(layer, nn.Conv2d) or own is nn.Conv2d.forward or kind in _no:
        return False
    if len(signature(own).parameters) == 2:
        operations = _Operations()
        size = [
            4 * k * d for k, d in zip(layer.kernel_size, layer.dilation, strict=True)
        ]
        try:
            with torch.no_grad(), operations:
                layer(layer.weight.new_zeros(1, layer.in_channels, *size))
        except Exception:
            operations.others.append('an error')
        used = [args[1:3] for args in operations.convolutions]
        if not operations.others and len(used) == 1:
            weight, bias = used[0]
            if weight is layer.weight and bias is layer.bias:
                return True
    _no.add(kind)
    return False


class _Operations(TorchDispatchMode):
    """Arguments of convolutions, and names of what is neither one nor padding."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: list[tuple] = []
        self.others: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.convolutions.append(args)
        elif 'pad' not in func.name() and func is not torch.ops.aten.new_zeros.default:
            self.others.append(func.name())
        return func(*args, **(kwargs or {}))
