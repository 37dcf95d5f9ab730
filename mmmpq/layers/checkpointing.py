"""Activation checkpointing, as the gradient of some tensors alone needs it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from torch.utils import checkpoint as module


@contextmanager
def open_checkpoints(recompute: bool = True) -> Iterator[None]:
    """Within it ``torch.autograd.grad`` sees what is computed inside of checkpoints.

    One with ``use_reentrant=True`` (MMEngine's, and ``with_cp=True`` of the toolboxes)
    is a single node of the graph, with the inputs of the block for inputs: tensors used
    inside, such as what layers mix with, are no part of it, and ``autograd.grad`` finds
    no way to them, without a word. Here they become checkpoints of the other kind,
    which save as much memory and compute the same.

    Args:
        recompute: False: the blocks keep their activations, as without checkpoints.
    """

    def apply(function: Callable, preserve_rng_state: bool, *args: Any) -> Any:
        if not recompute:
            return function(*args)
        how = dict(use_reentrant=False, preserve_rng_state=preserve_rng_state)
        return module.checkpoint(function, *args, **how)

    def nothing_dropped(*_args: Any, **_kwargs: Any) -> Iterator[None]:
        yield

    # What torch.utils.checkpoint.checkpoint looks up, whoever has imported that.
    stand_ins = dict(CheckpointFunction=SimpleNamespace(apply=apply))
    if not recompute:
        stand_ins['_checkpoint_without_reentrant_generator'] = nothing_dropped
    with patch.multiple(module, **stand_ins):
        yield
