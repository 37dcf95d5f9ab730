"""Figures of a search over its iterations: costs, loss and penalties.

Drawn on Matplotlib's ``Figure`` objects, without pyplot and its global state.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator, NullFormatter

from mmmpq.units import digits, scale
from mmmpq.visualization.history import SearchHistory
from mmmpq.visualization.theme import Theme


def costs(
    history: SearchHistory, final: Sequence[float | None], theme: Theme
) -> Figure:
    """Expected and realised cost over training, one panel per budget.

    Args:
        final: Cost of the policy under every budget, None where unknown.
    """
    fig, axes = _panels(len(history.budgets), 2, (5.5, 3.1))
    for index, (ax, budget) in enumerate(zip(axes, history.budgets, strict=True)):
        _cost_panel(ax, index, budget, history, final[index], theme)
    return fig


def _cost_panel(
    ax: Axes,
    index: int,
    budget: Mapping[str, Any],
    history: SearchHistory,
    final: float | None,
    theme: Theme,
) -> None:
    factor, unit = scale(budget['limit'], budget['unit'])
    limit = budget['limit'] / factor
    iters = history.iters
    dot = dict(marker='o' if len(iters) == 1 else None)
    series = {
        key: np.array(history.numbers(key, index)) / factor
        for key in ('bound', 'expected', 'realised')
    }
    budget_line = dict(ls='--', lw=1.1, label=f'budget {digits(limit)} {unit}')
    ax.axhline(limit, color=theme.ink, **budget_line)
    styles = dict(
        bound=dict(color=theme.faint, ls=':', label='bound B(t)'),
        realised=dict(color=theme.realised, ms=10, drawstyle='steps-post'),
        expected=dict(color=theme.expected, ms=5),
    )
    for key, style in styles.items():
        if key != 'bound' or np.isfinite(series['bound']).any():
            ax.plot(iters, series[key], **{'label': key, **dot, **style})
    if final is not None:
        style = dict(color=theme.realised, ms=6, mec=theme.page, label='policy.json')
        at = iters[-1] if iters else 0
        ax.plot(at, final / factor, 'D', clip_on=False, zorder=5, **style)
    ax.margins(y=0.12)
    low, high = ax.get_ylim()
    ax.axhspan(limit, max(high, limit), color=theme.over, alpha=0.1, lw=0, zorder=0)
    ax.set_ylim(low, high)
    ax.set_title(str(budget['type']), loc='left', fontweight='bold')
    ax.set_ylabel(unit)
    _iteration_axis(ax, iters)
    below = dict(loc='upper center', bbox_to_anchor=(0.5, -0.17))
    ax.legend(ncols=3, columnspacing=1.4, **below)


def penalties(history: SearchHistory, theme: Theme) -> Figure:
    """Task loss and every penalty over training, one panel each."""
    names = list(dict.fromkeys(n for r in history.records for n in r['penalties']))
    fig, axes = _panels(1 + len(names), 3, (3.7, 2.4))
    curves = [('task loss', history.numbers('loss'))]
    curves += [(name, history.numbers('penalties', name)) for name in names]
    for ax, (title, values) in zip(axes, curves, strict=True):
        values = np.array(values)
        smooth = _moving_mean(values, max(len(values) // 20, 1))
        dot = 'o' if len(values) == 1 else None
        ax.plot(history.iters, values, color=theme.weights, lw=0.8, alpha=0.4)
        ax.plot(history.iters, smooth, color=theme.weights, marker=dot)
        finite = values[np.isfinite(values)]
        if finite.size and finite.min() > 0 and finite.max() > 50 * finite.min():
            ax.set_yscale('log')
            ax.yaxis.set_major_formatter(LogFormatter())  # no mathtext
            ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_title(title, loc='left', fontweight='bold')
        ax.set_ylabel('value (no unit)')
        _iteration_axis(ax, history.iters)
    return fig


def _moving_mean(values: np.ndarray, radius: int) -> np.ndarray:
    """Mean over ``2 * radius + 1`` values, fewer at the ends; NaN are left out."""
    if not len(values):
        return values
    finite = np.isfinite(values)
    window = np.ones(2 * radius + 1)
    inside = slice(radius, radius + len(values))
    total = np.convolve(np.where(finite, values, 0.0), window)[inside]
    count = np.convolve(finite.astype(float), window)[inside]
    return np.where(finite, total / np.maximum(count, 1), np.nan)


def _panels(
    count: int, columns: int, size: tuple[float, float]
) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels of ``size`` inches in at most so many columns."""
    columns = min(max(count, 1), columns)
    rows = math.ceil(count / columns) or 1
    fig = Figure(figsize=(columns * size[0], rows * size[1]), layout='constrained')
    axes = list(fig.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.set_axis_off()
    return fig, axes[:count]


def _iteration_axis(ax: Axes, iters: Sequence[int]) -> None:
    ax.set_xlabel('iteration')
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.grid(axis='y')
    if len(iters) > 1:
        ax.set_xlim(iters[0], iters[-1])
    if not iters:
        ax.set_xticks([])
        ax.text(0.5, 0.5, 'no record yet', ha='center', transform=ax.transAxes)
