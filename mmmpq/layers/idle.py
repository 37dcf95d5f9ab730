"""Parameters that a sampled path passes by, and that DDP nevertheless waits for."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.autograd import Function


def with_idle(x: Tensor, params: Iterable[nn.Parameter]) -> Tensor:
    """``x``, whose backward pass also gives every one of ``params`` a gradient of 0.

    DDP reduces the gradients of all parameters, and stops at one that took part in no
    forward. With one process it is the same, so that an optimizer's momentum and
    weight decay do not depend on the number of processes.
    """
    idle = [p for p in params if p.requires_grad]
    return _WithIdle.apply(x, *idle) if idle else x


class _WithIdle(Function):
    @staticmethod
    def forward(ctx, x, *idle):
        ctx.shapes = [p.shape for p in idle]
        return x.clone()  # a view would forbid in-place operations on it

    @staticmethod
    def backward(ctx, grad):
        return grad, *(grad.new_zeros(shape) for shape in ctx.shapes)
