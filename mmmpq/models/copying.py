"""A copy of a model, whatever its code keeps in attributes."""

import copy
import logging
from collections import ChainMap

from mmengine.logging import print_log
from torch import nn

OWN = frozenset(vars(nn.Module()))  # of every module: parameters, hooks, ...
SIMPLE = (bool, int, float, str, type(None))


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy. What cannot be copied, such as a feature map that a model keeps from
    its last forward, is None in it, and named once."""
    held = (*model.modules(), *model.parameters(), *model.buffers())
    here = {id(part): part for part in held}
    memo: dict[int, None] = {}
    names: list[str] = []
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            if name in OWN or isinstance(value, SIMPLE):
                continue
            try:
                copy.deepcopy(value, ChainMap({}, here))
            except Exception:
                memo[id(value)] = None
                names.append(f'{prefix}.{name}'.lstrip('.'))
    if names:
        print_log(
            f'not copied with the model: {", ".join(names)}',
            logger='current',
            level=logging.WARNING,
        )
    return copy.deepcopy(model, memo)
