"""Traces of a loss's Hessian, by blocks of the tensors that it depends on."""

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

# A function of shifts of its variables (None: none of them; None for a block: not that
# one) that returns a loss and, by block, the tensors that it depends on.
Shifts = list[list[Tensor] | None]
Forward = Callable[[Shifts | None], tuple[Tensor, list[list[Tensor]]]]


class NotTwiceDifferentiable(RuntimeError):
    """The loss holds a function that autograd cannot differentiate twice."""


def trace_sample(
    forward: Forward,
    generator: torch.Generator,
    parts: Sequence[Sequence[int]] | None = None,
    epsilon: float | None = None,
) -> Tensor:
    """vᵀHv / n of every block, for one Rademacher vector v.

    Args:
        forward: Returns the loss and its variables by block; a block may hold several
            tensors. Given shifts, it adds them to the variables.
        generator: A CPU's, that v is drawn from.
        parts: Blocks that share one product Hv, which has the noise of all of them.
            Default: all blocks together.
        epsilon: None for a double backward. A number for central differences,
            Hv = (g(x + εv) - g(x - εv)) / 2ε, where the loss has no second derivative
            that autograd knows; ε is in units of a block's root mean square.

    Returns:
        (blocks,), float64, on the CPU.

    Raises:
        NotTwiceDifferentiable: Without ``epsilon``, of such a loss.
    """
    with torch.set_grad_enabled(epsilon is None):
        loss, blocks = forward(None)
    vs = [[_rademacher(x, generator) for x in block] for block in blocks]
    if epsilon is None:
        _check_twice_differentiable(loss)
        grads = _gradients(loss, blocks, create_graph=True)
    estimates = torch.zeros(len(blocks), dtype=torch.float64)
    for part in parts or [range(len(blocks))]:
        if epsilon is None:
            dot = sum(_inner(grads[i], vs[i]) for i in part)
            products = _second(dot, [blocks[i] for i in part])
        else:
            products = _differences(forward, blocks, vs, part, epsilon)
        for i, product in zip(part, products, strict=True):
            count = sum(v.numel() for v in vs[i])
            estimates[i] = float(_inner(product, vs[i])) / max(1, count)
    return estimates


def _second(dot: Tensor, blocks: list[list[Tensor]]) -> list[list[Tensor]]:
    try:
        return _gradients(dot, blocks, retain_graph=True)
    except RuntimeError as error:
        if re.search('twice|double backward|is not implemented', str(error)):
            raise NotTwiceDifferentiable(str(error)) from error
        raise


def _differences(
    forward: Forward,
    blocks: list[list[Tensor]],
    vs: list[list[Tensor]],
    part: Sequence[int],
    epsilon: float,
) -> list[list[Tensor]]:
    """Hv, with a step of ``epsilon`` times the root mean square of each block."""
    steps = {i: epsilon * _root_mean_square(blocks[i]) for i in part}
    sides = []
    for sign in (1, -1):
        shifts: Shifts = [None] * len(vs)
        for i in part:
            shifts[i] = [sign * steps[i] * v for v in vs[i]]
        loss, moved = forward(shifts)
        sides.append(_gradients(loss, [moved[i] for i in part]))
    return [
        [(p - m) / (2 * steps[i]) for p, m in zip(plus, minus, strict=True)]
        for i, plus, minus in zip(part, *sides, strict=True)
    ]


@torch.no_grad()
def _root_mean_square(block: list[Tensor]) -> float:
    count = sum(x.numel() for x in block)
    total = float(_inner(block, block)) if count else 0.0
    return (total / max(1, count)) ** 0.5 or 1.0


def relative_error(samples: Sequence[Sequence[float]]) -> float:
    """Median over the columns of standard error / |mean|; infinite below 2 rows."""
    if len(samples) < 2:
        return float('inf')
    values = np.asarray(samples)
    spread = values.std(axis=0, ddof=1) / len(values) ** 0.5
    return float(np.median(spread / np.maximum(np.abs(values.mean(axis=0)), 1e-30)))


def _rademacher(x: Tensor, generator: torch.Generator) -> Tensor:
    signs = torch.randint(0, 2, x.shape, generator=generator)
    return (2 * signs - 1).to(x)


def _inner(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return sum(((x * y).sum() for x, y in zip(a, b, strict=True)), torch.zeros(()))


def _gradients(
    of: Tensor, blocks: list[list[Tensor]], **options: bool
) -> list[list[Tensor]]:
    """Gradients in the shape of ``blocks``; zeros where there is no dependence."""
    flat = [x for block in blocks for x in block]
    grads: Iterator = iter([None] * len(flat))
    if of.requires_grad and flat:
        grads = iter(torch.autograd.grad(of, flat, allow_unused=True, **options))
    return [
        [torch.zeros_like(x) if (g := next(grads)) is None else g for x in block]
        for block in blocks
    ]


def _check_twice_differentiable(loss: Tensor) -> None:
    """Looks for functions written in Python, such as the compiled ops of mmcv.

    Mostly they have a first derivative alone, and most of these do not say so: torch
    then takes their gradient for a constant.
    """
    seen, ahead = set(), [loss.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            raise NotTwiceDifferentiable(f'{node.name()} has no second derivative')
        seen.add(node)
        ahead += [following for following, _ in node.next_functions]
