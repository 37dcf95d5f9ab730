"""What a module was called with, and what it returned."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def first_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Its input: of layers and blocks, what comes first."""
    return args[0] if args else next(iter(kwargs.values()))


def leaves(values: Any) -> Iterator[Any]:
    """What nested lists, tuples and dicts hold, in order."""
    if isinstance(values, Mapping):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        yield values
        return
    for value in values:
        yield from leaves(value)
