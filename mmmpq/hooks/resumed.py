"""The state of a search in the checkpoint that a run is resumed from."""

from typing import TYPE_CHECKING, Any

from mmengine.runner import Runner

if TYPE_CHECKING:
    from mmmpq.hooks.search_hook import SearchHook


def resumed_state(
    runner: Runner, hook: 'SearchHook', checkpoint: dict
) -> dict[str, Any] | None:
    """What the search goes on from; None where nothing is resumed.

    Raises:
        ValueError: The checkpoint is not one of such a search.
    """
    if not runner._resume:
        return None
    wanted = ['steps', 'started_at', 'last', 'optimizer']
    if hook.scheduler_cfg:
        wanted.append('scheduler')
    if not hook.joint:
        wanted.append('position')
    state = checkpoint.get(hook.KEY)
    found = state if isinstance(state, dict) else {}
    missing = [key for key in wanted if key not in found]
    if missing:
        what = f'no {missing[0]} of' if found else 'no state of'
        raise ValueError(
            f'resume: {runner._load_from} holds {what} a search like this one, which '
            'would begin anew; accepted is a checkpoint that it wrote. To start a '
            'search from its weights give it as load_from, without resume'
        )
    return state
