"""What a search has left in its work_dir."""

import re
from pathlib import Path

import torch
from torch import Tensor

from mmmpq.search import SearchSpace
from mmmpq.visualization.history import SearchHistory


def find_config(search_dir: Path) -> Path:
    """The config that a run has written last."""
    if not search_dir.is_dir():
        raise FileNotFoundError(f'search_dir: there is no folder {search_dir}')
    configs = sorted(search_dir.glob('*.py'), key=lambda p: p.stat().st_mtime)
    if not configs:
        raise FileNotFoundError(
            f'search_dir: {search_dir} holds no config; a run writes it there. '
            'Name it with --config'
        )
    return configs[-1]


def find_checkpoint(search_dir: Path) -> str | None:
    """The last checkpoint of a run, or None; the folder may have been moved."""
    last = search_dir / 'last_checkpoint'
    if last.is_file():
        named = Path(last.read_text().strip())
        for path in (search_dir / named.name, named):
            if path.is_file():
                return str(path)
    numbered = [
        (int(match[1]), str(path))
        for path in search_dir.glob('*.pth')
        if (match := re.fullmatch(r'(?:epoch|iter)_(\d+)', path.stem))
    ]
    return max(numbered)[1] if numbered else None


def history_probs(search_dir: Path, space: SearchSpace) -> list[Tensor]:
    """Final probabilities of every group, from the records of the search."""
    history = SearchHistory.load(search_dir / 'search_history.jsonl')
    if not history.records:
        raise ValueError(f'search_dir: the history in {search_dir} has no record')
    probs = history.records[-1]['probs']
    sizes = {g.name: len(g.candidates) for g in space.groups}
    if {name: len(p) for name, p in probs.items()} != sizes:
        raise ValueError(
            f'search_dir: the history in {search_dir} is of another search space than '
            'that of the config; name the right one with --config'
        )
    return [torch.tensor(probs[g.name]) for g in space.groups]
