"""Expected and realised cost, penalties and bits: to log, visualizer and file."""

import math

from mmengine import dist
from mmengine.runner import Runner
from torch import Tensor

from mmmpq.search import Group, History, Search, record_of


def record(
    runner: Runner, search: Search, history: History, outputs: dict | None
) -> None:
    """Notes where the search is."""
    loss = outputs.get('loss') if isinstance(outputs, dict) else None
    loss = loss.item() if isinstance(loss, Tensor) else loss
    entry = record_of(search, runner.iter, runner.epoch, loss)
    probs = list(entry['probs'].values())
    entropy = sum(-q * math.log(max(q, 1e-12)) for p in probs for q in p)
    scalars = dict(search.last, entropy=entropy / len(probs))
    for i, table in enumerate(search.tables):
        for kind in ('expected', 'realised'):
            scalars[f'{table.name}_{kind}'] = entry[kind][i] / table.limit
    for key, value in scalars.items():
        runner.message_hub.update_scalar(f'train/{key}', value)
    if not dist.is_main_process():
        return
    bits = {
        f'{kind}/{group.name}': _mean_bits(group, p, kind)
        for group, p in zip(search.space.groups, probs, strict=True)
        for kind in ('w_bits', 'a_bits')
    }
    runner.visualizer.add_scalars(bits, step=runner.iter + 1)
    history.append(entry)


def _mean_bits(group: Group, probs: list[float], kind: str) -> float:
    pairs = zip(probs, group.candidates, strict=True)
    return sum(p * getattr(c, kind) for p, c in pairs)
