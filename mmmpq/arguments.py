"""Arguments compared with a signature: unknown keys, and values of another type."""

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from mmmpq.policy import Precision, near

T = TypeVar('T', bound=Callable)
WORDS = {
    bool: 'True or False',
    int: 'an int',
    float: 'a finite number',
    str: 'a text',
    type(None): 'None',
    Path: 'a path',
}
LISTS = (list, tuple, Sequence, Iterable)
PARSED = (Precision,)  # of several forms
GIVEN = ('self', 'args', 'bits', 'target', 'channels', 'candidates', 'group')  # by us


def checks_arguments(key: str = '') -> Callable[[T], T]:
    """Has a function, or the constructor of a class, check what it is given.

    Args:
        key: Whose arguments they are, for the messages of errors; default: the class.

    Raises:
        KeyError: There is no argument of that name (near names).
        ValueError: One is missing, or is not of the annotated type.
    """

    def decorate(part: T) -> T:
        if isinstance(part, type):
            part.__init__ = _checking(part.__init__, key)
            return part
        return _checking(part, key)

    return decorate


def check_least(key: str, **numbers: tuple[float, float]) -> None:
    """Raises ValueError for a number below its least: ``name=(number, least)``."""
    for name, (number, least) in numbers.items():
        if number < least:
            raise ValueError(
                f'{key}.{name}: found {number!r}; accepted are numbers from {least}'
            )


def _checking(call: Callable, key: str) -> Callable:
    signature = inspect.signature(call)

    @functools.wraps(call)
    def checked(*args: Any, **kwargs: Any) -> Any:
        of = key or type(args[0]).__name__
        accepted = _closed(signature) if key else _names(type(args[0]))
        for name in kwargs:
            if accepted is not None and name not in accepted:
                ours = ('self', 'model') if key else GIVEN
                others = near(name, [n for n in accepted if n not in ours])
                raise KeyError(f'{of}: unknown key {name!r}; {others}')
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise ValueError(f'{of}: {error}') from error
        arguments = {**arguments, **kwargs}
        hints = _hints(call) if key else _all_hints(type(args[0]))
        for name, hint in hints.items():
            if name in arguments and not _is(arguments[name], hint):
                raise ValueError(
                    f'{of}.{name}: found {arguments[name]!r:.80}; accepted is '
                    f'{_in_words(hint)}'
                )
        return call(*args, **kwargs)

    return checked


def _closed(signature: inspect.Signature) -> tuple[str, ...] | None:
    """The names of its arguments; None: it takes any."""
    kinds = [p.kind for p in signature.parameters.values()]
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds
    return None if takes_any else tuple(signature.parameters)


@functools.cache
def _names(cls: type) -> tuple[str, ...] | None:
    """The arguments of a class, with those that it hands to its bases; None: any."""
    names: list[str] = []
    for base in cls.__mro__[:-1]:
        if '__init__' in base.__dict__:
            parameters = inspect.signature(base.__init__).parameters.values()
            names += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
            if all(p.kind is not p.VAR_KEYWORD for p in parameters):
                return tuple(dict.fromkeys(names))
    return None


@functools.cache
def _all_hints(cls: type) -> dict[str, Any]:
    """Annotations of the arguments of a class, and of those that its bases take."""
    names, hints = _names(cls), {}
    for base in cls.__mro__[:-1]:
        if '__init__' in base.__dict__:
            hints = _hints(base.__init__) | hints
            if names is not None and set(names) <= set(hints):
                break
    return {n: h for n, h in hints.items() if names is None or n in names}


@functools.cache
def _hints(call: Callable) -> dict[str, Any]:
    """Annotations of the arguments that have a name of their own."""
    several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    named = inspect.signature(call).parameters.items()
    hints = typing.get_type_hints(call)
    return {n: hints[n] for n, p in named if n in hints and p.kind not in several}


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says, as far as configs are concerned."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is(value, each) for each in inner)
    kind = origin or hint
    if kind is Any or not isinstance(kind, type) or kind in PARSED:
        return True
    if kind in (int, float):
        number = isinstance(value, Integral if kind is int else Real)
        return number and not isinstance(value, bool) and _is_finite(value)
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping)
    if issubclass(kind, PathLike):
        return isinstance(value, (str, PathLike))
    if kind not in LISTS:
        return isinstance(value, kind)
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        return False
    if not isinstance(value, (list, tuple)):
        return True
    each = inner[:1] * len(value) if len(inner) == 1 or ... in inner else inner
    return not inner or (len(each) == len(value) and all(map(_is, value, each)))


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the floats
        return False


def _in_words(hint: Any) -> str:
    """What an annotation accepts, in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return ' or '.join(dict.fromkeys(map(_in_words, inner)))
    kind = origin or hint
    if kind in LISTS:
        of = dict.fromkeys(_in_words(i) for i in inner if i is not ...)
        size = f' of {len(inner)}' if kind is tuple and ... not in inner else ''
        return f'a list{size}' + (f' ({" or ".join(of)} each)' if of else '')
    if kind in WORDS or kind is Any or not isinstance(kind, type):
        return WORDS.get(kind, 'anything')
    return 'a dict' if issubclass(kind, Mapping) else f'a {kind.__name__}'
