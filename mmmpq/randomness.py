"""The states of all random generators that training draws from."""

import contextlib
import random
from collections.abc import Iterable

import numpy as np
import torch


@contextlib.contextmanager
def isolated_randomness(seed: int | None = None, devices: Iterable[torch.device] = ()):
    """Within it random numbers follow from ``seed``; after it nothing was drawn.

    Python's, NumPy's and torch's CPU generator are isolated, which are those that data
    pipelines use, and those of the CUDA ``devices``. None starts from where they are.
    """
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed % 2**32)
                torch.default_generator.manual_seed(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
