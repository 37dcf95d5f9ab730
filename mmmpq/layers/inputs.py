"""What a module was called with, and what it returned."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def first_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Its input: of layers and blocks, what comes first."""
    return args[0] if args else next(iter(kwargs.values()))


def leaves(values: Any) -> Iterator[Any]:
    """What nested lists, tuples and dicts hold, in order."""
    if isinstance(values, Mapping):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        yield values
        return
    for value in values:
        yield from leaves(value)


def sample(x: Tensor, most: int = 16384) -> Tensor:
    """Values at even distances as a flat float32 tensor.

    Where they show neither the sign nor any value, a tiny negative one, or all that is
    not zero, stands for it: an extreme among so few would count as if it were many.
    """
    flat = x.detach().float().flatten()
    # A copy: what is sampled may be changed in place by what comes next.
    values = flat[:: (flat.numel() // most) | 1].clone()
    if not values.any():
        values = flat[flat != 0][:most]
    if (flat < 0).any() and not (values < 0).any():
        values = torch.cat([values, values.new_full((1,), -1e-12)])
    return values
