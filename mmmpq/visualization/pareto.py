"""The figure of many budgets: what a policy costs against what it is worth."""

import numpy as np
from matplotlib.figure import Figure

from .units import scale


def pareto(points, metric, theme):
    """Cost against log-probability and, where one was measured, against a metric.

    The line joins what is best up to a cost.

    Args:
        points (list[dict]): Of ``pareto.json``: ``budget``, ``score``, ``budgets``,
            ``bops``, ``metrics``.
        metric (str | None): Key of ``metrics``.
    """
    costs, label, unit = _costs(points)
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
            ax.annotate(
                text, spot, (0, 5), textcoords='offset points', ha='center', fontsize=7
            )
        ax.margins(0.14, 0.18)
        ax.set_xlabel(f'{label} ({name})')
        ax.set_ylabel(title)
        ax.grid(True)
        ax.set_axisbelow(True)
    return fig


def _costs(points):
    """Under the first budget where that is of one kind everywhere, else BOPs."""
    kinds = {(p['budgets'][0]['type'], p['budgets'][0]['unit']) for p in points}
    if len(kinds) > 1:
        return [p['bops'] for p in points], 'BOPs', 'BOPs'
    return [p['budgets'][0]['cost'] for p in points], *kinds.pop()
