"""What a module was called with, by position or by keyword."""

from collections.abc import Mapping, Sequence
from typing import Any


def first_input(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Its input: of layers and blocks, what comes first."""
    return args[0] if args else next(iter(kwargs.values()))
