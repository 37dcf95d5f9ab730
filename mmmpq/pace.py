"""How far something long is: a line now and then, with what is left of it."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar('T')
SECONDS = 10.0  # between two lines; what takes less is not worth one


def paced(items: Sequence[T], log: Callable[[str], None], what: str) -> Iterator[T]:
    """The items, with a line such as 'calibration: 3 of 8, about 20 s left'."""
    began = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= SECONDS:
            remaining = (now - began) / done * (len(items) - done)
            log(f'{what}: {done} of {len(items)}, about {remaining:.0f} s left')
            last = now
        yield item
