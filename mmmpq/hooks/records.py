"""Expected and realised cost, penalties and bits: to log, visualizer and file."""

import math
from typing import TYPE_CHECKING

from mmengine import dist
from mmengine.runner import Runner
from torch import Tensor

from mmmpq.layers import on_host
from mmmpq.search import Group, most_probable

if TYPE_CHECKING:
    from mmmpq.hooks.search_hook import SearchHook


def record(runner: Runner, hook: 'SearchHook', outputs: dict | None) -> None:
    """Notes where the search is."""
    space, tables = hook.space, hook.tables
    probs = on_host(space.probs())
    expected = tables.expected(probs).tolist()
    policy = space.policy(most_probable(space, tables, probs))
    realised = [t.of(policy) for t in tables]
    values = [p.tolist() for p in probs]
    entropy = sum(-q * math.log(max(q, 1e-12)) for p in values for q in p)
    scalars = hook.last
    scalars['entropy'] = entropy / len(values)
    for table, e, r in zip(tables, expected, realised, strict=True):
        scalars[f'{table.name}_expected'] = e / table.limit
        scalars[f'{table.name}_realised'] = r / table.limit
    for key, value in scalars.items():
        runner.message_hub.update_scalar(f'train/{key}', value)
    if not dist.is_main_process():
        return
    bits = {
        f'{kind}/{group.name}': _mean_bits(group, p, kind)
        for group, p in zip(space.groups, values, strict=True)
        for kind in ('w_bits', 'a_bits')
    }
    runner.visualizer.add_scalars(bits, step=runner.iter + 1)
    loss = outputs.get('loss') if isinstance(outputs, dict) else None
    hook.history.append(
        dict(
            iter=runner.iter,
            epoch=runner.epoch,
            loss=loss.item() if isinstance(loss, Tensor) else loss,
            penalties={n: scalars[n] for n in hook.objective.names if n in scalars},
            expected=expected,
            realised=realised,
            bound=hook.bounds(runner),
            probs={g.name: p for g, p in zip(space.groups, values, strict=True)},
        )
    )


def _mean_bits(group: Group, probs: list[float], kind: str) -> float:
    pairs = zip(probs, group.candidates, strict=True)
    return sum(p * getattr(c, kind) for p, c in pairs)
