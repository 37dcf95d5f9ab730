"""The state of a search in the checkpoint that a run is resumed from."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.runner import Runner


def resumed_state(
    runner: Runner, checkpoint: Mapping, key: str, keys: Sequence[str]
) -> dict[str, Any] | None:
    """What the search goes on from; None where nothing is resumed.

    Args:
        runner: Of the run.
        checkpoint: What it resumes from.
        key: Of the search's state in it.
        keys: Keys of that state.

    Raises:
        ValueError: The checkpoint is not one of such a search.
    """
    if not runner._resume:
        return None
    state = checkpoint.get(key)
    entries = state if isinstance(state, dict) else {}
    missing = [key for key in keys if key not in entries]
    if missing:
        what = f'no {missing[0]} of' if entries else 'no state of'
        raise ValueError(
            f'resume: {runner._load_from} holds {what} a search like this one, which '
            'would begin anew; accepted is a checkpoint that it wrote. To start a '
            'search from its weights give it as load_from, without resume'
        )
    return state
