"""Figures of many budgets: what a policy costs against what it is worth."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmmpq.units import scale
from mmmpq.visualization.theme import Theme

Point = Mapping[str, Any]
LABELS = dict(front='NSGA-II', milp='MILP on a linear predictor', uniform='uniform')


def pareto(points: Sequence[Point], metric: str | None, theme: Theme) -> Figure:
    """Cost against log-probability and, where one was measured, against a metric.

    The line joins what is best up to a cost.

    Args:
        points: Of ``pareto.json``: ``budget``, ``score``, ``budgets``, ``bops``,
            ``metrics``.
        metric: Key of ``metrics``.
    """
    costs, label, unit = costs_of(points)
    factor, name = scale(max(costs), unit)
    panels = [('log-probability Σ log p', [p['score'] for p in points])]
    if metric:
        panels.append((metric, [p['metrics'][metric] for p in points]))
    fig = Figure(figsize=(4.6 * len(panels), 3.2), layout='constrained')
    axes = fig.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, values) in zip(axes, panels, strict=True):
        names = {}
        for cost, value, point in zip(costs, values, points, strict=True):
            names.setdefault((cost / factor, value), []).append(point['budget'])
        spots = sorted(names)
        x, y = zip(*spots, strict=True)
        best = np.maximum.accumulate(y)
        ax.step(x, best, where='post', color=theme.expected, linewidth=1)
        ax.plot(x, y, 'o', color=theme.weights, markersize=4)
        for spot in spots:
            first, *others = names[spot]
            text = f'{first} +{len(others)}' if others else first
            _note(ax, text, spot, 5)
        ax.margins(0.14, 0.18)
        _label(ax, f'{label} ({name})', title)
    return fig


def measured_front(
    points: Sequence[Point],
    cost: str,
    unit: str,
    metric: str,
    samples: tuple[np.ndarray, np.ndarray] | None,
    theme: Theme,
) -> Figure:
    """Measured nets of each kind, and the line of those that no other is better than.

    Args:
        points: Of ``front.json``: ``kind``, ``name``, ``costs`` and ``score``.
        cost: Key of ``costs``.
        unit: Its unit.
        metric: What ``score`` is.
        samples: Costs and scores of other nets, in the background.
    """
    factor, name = scale(max(p['costs'][cost] for p in points), unit)
    fig = Figure(figsize=(6.4, 4.0), layout='constrained')
    ax = fig.subplots()
    if samples is not None:
        x, y = samples[0] / factor, samples[1]
        ax.plot(x, y, '.', color=theme.faint, alpha=0.4, markersize=3, label='samples')
    best = sorted((p['costs'][cost] / factor, p['score']) for p in points)
    x, y = zip(*best, strict=True)
    ax.step(x, np.maximum.accumulate(y), where='post', color=theme.expected)
    for kind, marker, colour in (
        ('front', 'o', theme.weights),
        ('milp', '^', theme.realised),
        ('uniform', 'D', theme.activations),
    ):
        of_kind = [p for p in points if p['kind'] == kind]
        x = [p['costs'][cost] / factor for p in of_kind]
        y = [p['score'] for p in of_kind]
        if of_kind:
            ax.plot(x, y, marker, color=colour, markersize=5, label=LABELS[kind])
        if kind == 'uniform':
            named = {}  # of several nets at one precision, the cheapest
            for *spot, point in sorted(
                zip(x, y, of_kind, strict=True), key=itemgetter(0)
            ):
                named.setdefault(point['name'].partition('_')[0], spot)
            for precision, spot in named.items():
                _note(ax, precision, spot, -10)
    ax.margins(0.08, 0.12)
    _label(ax, f'{cost} ({name})', metric)
    ax.legend(loc='lower right')
    return fig


def _note(ax: Axes, text: str, spot: Sequence[float], above: float) -> None:
    offset = dict(textcoords='offset points', ha='center', fontsize=7)
    ax.annotate(text, spot, (0, above), **offset)


def _label(ax: Axes, x: str, y: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(True)
    ax.set_axisbelow(True)


def costs_of(points: Sequence[Point]) -> tuple[list[float], str, str]:
    """Under the first budget where that is of one kind everywhere, else BOPs."""
    kinds = {(p['budgets'][0]['type'], p['budgets'][0]['unit']) for p in points}
    if len(kinds) > 1:
        return [p['bops'] for p in points], 'BOPs', 'BOPs'
    return [p['budgets'][0]['cost'] for p in points], *kinds.pop()
