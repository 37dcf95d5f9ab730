"""Names of layers and groups in little room, still told apart."""

import re
from collections.abc import Callable, Iterable


def shorten(name: str, length: int) -> str:
    """``name`` in at most so many characters: its end, which tells most."""
    if len(name) <= length:
        return name
    end = name[1 - length :].lstrip('.')
    whole = end.partition('.')[2]  # from the next dot on, if that leaves enough
    return '…' + (whole if 2 * len(whole) > length else end)


def common_prefix(names: Iterable[str]) -> str:
    """The modules that all of several names are in: 'backbone.stages.'."""
    parts = [name.split('.')[:-1] for name in names]
    if len(parts) < 2:
        return ''
    levels = enumerate(zip(*parts, strict=False))
    shortest = min(map(len, parts))
    depth = next((i for i, each in levels if len(set(each)) > 1), shortest)
    return ''.join(f'{part}.' for part in parts[0][:depth])


def short_names(names: Iterable[str], length: int) -> dict[str, str]:
    """Each name in at most so many characters, no two alike: its end; else its two
    ends; else with modules as initials; else by number."""
    names = list(dict.fromkeys(names))
    ways: tuple[Callable[[str, int], str], ...] = shorten, _ends, _initials
    for way in ways:
        short = {name: way(name, length) for name in names}
        if len(set(short.values())) == len(names):
            return short
    return {n: f'{i}{shorten(n, length - len(str(i)))}' for i, n in enumerate(names)}


def _ends(name: str, length: int) -> str:
    end = length // 2
    return name if len(name) <= length else f'{name[: length - end - 1]}…{name[-end:]}'


def _initials(name: str, length: int) -> str:
    modules, dot, last = name.rpartition('.')
    return shorten(re.sub(r'([^\W\d_])[^\W\d_]*', r'\1', modules) + dot + last, length)
