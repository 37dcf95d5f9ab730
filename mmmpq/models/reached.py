"""Which layers a forward of the model reaches, so that they can be quantized at all."""

import logging
from collections.abc import Mapping, Sequence

from mmengine.logging import print_log
from torch import Tensor, nn

from mmmpq.costs.flow import Flow, flow_of


def look_through(model: nn.Module) -> Flow | None:
    """The flow of a float model's forward; None if it does not run, which is said."""
    try:
        return flow_of(model)
    except ValueError as error:
        print_log(
            'quant: which layers are called, and which are the last, cannot be seen: '
            f'{error}',
            logger='current',
        )
        return None


def passed_by(names: Sequence[str], flow: Flow, copied: Mapping[str, str]) -> list[str]:
    """Layers that stay float, which is said: their quantizers would have no effect.

    They are never called, or what holds them reads their weight by itself.

    Args:
        names: Layers that could be quantized.
        flow: Of a forward.
        copied: Layers and those that they copy: it calls either.
    """
    of = {n: copied.get(n, n) for n in names}
    called = set(flow.called)
    reasons = {
        'something else reads their weight': [n for n in names if of[n] in flow.read],
        'a forward does not call them': [n for n in names if of[n] not in called],
    }
    in_float: dict[str, None] = {}
    for reason, layers in reasons.items():
        layers = [n for n in layers if n not in in_float]
        in_float.update(dict.fromkeys(layers))
        _say(reason, layers)
    return list(in_float)


def shared_weights(
    model: nn.Module, names: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Of layers with one weight all and their first; and, which is said, layers whose
    weight belongs to something else as well that stays float, as an embedding."""
    holders: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for param in module._parameters.values():
            holders.setdefault(id(param), []).append(name)
    of = {n: holders[id(model.get_submodule(n).weight)] for n in names}
    in_float = [n for n in names if not set(of[n]) <= set(names)]
    _say('their weight is that of a float layer as well', in_float)
    return {n: of[n][0] for n in names if n not in in_float and n != of[n][0]}, in_float


def _say(reason: str, layers: Sequence[str]) -> None:
    if layers:
        print_log(
            f'these layers stay float, as {reason}: {", ".join(layers)}',
            logger='current',
            level=logging.WARNING,
        )


def report_float(modules: Mapping[str, nn.Module], quantizable: Sequence[str]) -> None:
    """Says once which layers with a weight of their own stay float."""
    others = [
        f'{n} ({type(m).__name__})'
        for n, m in modules.items()
        if n not in set(quantizable)
        and isinstance(weight := getattr(m, 'weight', None), Tensor)
        and weight.dim() > 1
        and not isinstance(m, nn.Embedding)
    ]
    if others:
        print_log(f'these layers stay float: {", ".join(others)}', logger='current')
