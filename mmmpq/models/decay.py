"""Ranges of quantizers in an optimizer: stepped like their layer, and never decayed."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import (
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIMIZERS,
    build_from_cfg,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from mmmpq.layers import Relaxation
from mmmpq.quantizers import Quantizer
from mmmpq.registry import class_of

NAMES = ('params', 'param_names', 'param_name', 'group_name')  # no options


def exempt_ranges(
    optimizer: Optimizer, model: nn.Module, rules: Iterable[str] = ()
) -> Optimizer:
    """Takes weight decay off the ranges of ``model``, and off its logits, in place.

    Decay would shrink them where nothing else moves them. All other options are those
    of the weight that the range, or its input's, belongs to.

    Args:
        optimizer: Of its parameters, or some of them; before any schedule is built.
        model: A quantized model.
        rules: Parts of names, as in MMEngine's ``custom_keys``: a range of which the
            longest that fits has 'quantizer' in it keeps its options, decay apart.
    """
    rules = sorted(sorted(rules), key=len, reverse=True)
    group_of = {id(p): g for g in optimizer.param_groups for p in g['params']}
    new: dict[int, dict[str, Any]] = {}
    for name, param, weight in _ranges(model):
        own = group_of.get(id(param))
        if own is None:
            continue
        meant = 'quantizer' in next((r for r in rules if r in name), '')
        like = own if meant else group_of.get(id(weight), own)
        options = {k: v for k, v in like.items() if k not in NAMES}
        if 'weight_decay' in options:
            options['weight_decay'] = 0.0
        before = {k: v for k, v in own.items() if k not in NAMES}
        if options == before:
            continue
        if len(own['params']) == 1:
            for key in before:
                del own[key]
            own.update(options)
            continue
        group = new.setdefault(id(like), dict(options, params=[]))
        _move(param, own, group)
    optimizer.param_groups[:] = [g for g in optimizer.param_groups if g['params']]
    for group in new.values():
        optimizer.add_param_group(group)
    return optimizer


def warn_of_decay(optimizer: Optimizer, model: nn.Module) -> None:
    """Says which ranges an optimizer decays that was built by the user's own code."""
    decayed = {
        id(p): bool(g.get('weight_decay')) for g in optimizer.param_groups
        for p in g['params']
    }  # fmt: skip
    names = [name for name, p, _ in _ranges(model) if decayed.get(id(p))]
    if names:
        print_log(
            f'optim_wrapper decays the ranges of quantizers ({len(names)}, such as '
            f'{names[0]}): mmmpq.exempt_ranges(optimizer, model) takes them out, '
            'before the schedules are built',
            logger='current',
            level=logging.WARNING,
        )


def _ranges(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Tensor | None]]:
    """The parameters of quantizers and relaxations, and the weight of their layer."""
    seen: set[int] = set()  # layers with one weight have one quantizer of it
    for prefix, layer in model.named_modules():
        for child, quantizer in layer.named_children():
            if isinstance(quantizer, (Quantizer, Relaxation)):
                for name, param in quantizer.named_parameters():
                    if id(param) in seen:
                        continue
                    seen.add(id(param))
                    full = '.'.join(filter(None, (prefix, child, name)))
                    yield full, param, layer._parameters.get('weight')


def _move(param: nn.Parameter, own: dict[str, Any], group: dict[str, Any]) -> None:
    """From one group to another, with its name, where they have names."""
    place = next(i for i, p in enumerate(own['params']) if p is param)
    del own['params'][place]
    group['params'].append(param)
    if 'param_names' in own:
        group.setdefault('param_names', []).append(own['param_names'].pop(place))


def _build_constructor(cfg: dict, *args: Any, **kwargs: Any) -> Any:
    """Whatever constructor a config names, and no decay of ranges after it."""
    kind = ((cfg.get('optim_wrapper_cfg') or {}).get('optimizer') or {}).get('type')
    if kind is not None:  # MMEngine would take an unknown one for None
        class_of(OPTIMIZERS, kind, 'optim_wrapper.optimizer.type')
    constructor = build_from_cfg(cfg, *args, **kwargs)
    rules = (cfg.get('paramwise_cfg') or {}).get('custom_keys') or ()

    def construct(model: nn.Module) -> Any:
        wrapper = constructor(model)
        wrappers = wrapper.values() if hasattr(wrapper, 'values') else [wrapper]
        for each in wrappers:
            exempt_ranges(each.optimizer, model, rules)
        return wrapper

    return construct


# All toolboxes ask this registry, MMEngine's own, for their constructors.
OPTIM_WRAPPER_CONSTRUCTORS.build_func = _build_constructor
