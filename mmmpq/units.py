"""Costs as people read them: 1 203 000 000 BOPs is 1.20 GBOPs."""

import math

_SMALL = ('p', 'n', 'µ', 'm')
_DECIMAL = ('', 'K', 'M', 'G', 'T', 'P')


def _prefixed(unit, prefixes=_DECIMAL):
    first = prefixes.index('')
    return {f'{p}{unit}': 1000.0 ** (i - first) for i, p in enumerate(prefixes)}


_TIME = {'µs': 1.0, 'ms': 1e3, 's': 1e6}
# Of a unit, what it is written in: names and how much of it they are, ascending.
LADDERS = {
    'BOPs': _prefixed('BOPs'),
    'MACs': _prefixed('MACs'),
    'bytes': _prefixed('B'),
    'B': _prefixed('B'),
    'us': _TIME,
    'µs': _TIME,
}


def scale(value, unit):
    """Factor and name of the prefixed unit in which ``value`` reads well.

    Prefixes are decimal (1 MB = 10^6 bytes). Of a unit that is not known here, such as
    J of a cost of somebody else's, there are small ones as well.

    Examples:
        >>> scale(1.2e9, 'BOPs')
        (1000000000.0, 'GBOPs')
        >>> scale(0.003, 'J')
        (0.001, 'mJ')
    """
    ladder = LADDERS.get(unit) or _prefixed(unit, _SMALL + _DECIMAL)
    steps = [(factor, name) for name, factor in ladder.items()]
    fitting = [step for step in steps if abs(value) >= step[0]]
    return fitting[-1] if fitting else steps[0]


def digits(value, significant=3):
    """``value`` with so many significant digits, never in exponent form."""
    if not math.isfinite(value):
        return str(value)
    magnitude = math.floor(math.log10(abs(value))) if value else 0
    return f'{value:.{min(max(significant - 1 - magnitude, 0), 12)}f}'


def human(value, unit):
    """``value`` (in ``unit``) as text, e.g. ``'1.20 GBOPs'``."""
    factor, name = scale(value, unit)
    whole = factor == 1 and float(value).is_integer()
    return f'{int(value) if whole else digits(value / factor)} {name}'


def fits(cost, limit):
    """Whether ``cost`` is within ``limit``, up to the rounding of a float64 sum."""
    return cost <= limit * (1 + 1e-9)


def statement(cost, limit, unit):
    """One sentence on a budget, e.g. ``'fits: 1.18 of 1.20 GBOPs (98.3 %)'``.

    Digits are added until two different numbers also read differently.
    """
    factor, name = scale(limit, unit)
    share = 100 * cost / limit
    for extra in range(7):
        spent, bound = (digits(v / factor, 3 + extra) for v in (cost, limit))
        percent = f'{share:.{1 + extra}f}'
        if cost == limit or (spent != bound and float(percent) != 100):
            break
    verdict = 'fits' if fits(cost, limit) else 'exceeds'
    return f'{verdict}: {spent} of {bound} {name} ({percent} %)'
