"""Expected bits of many groups over a search: a row for each, a colour for bits."""

from collections.abc import Mapping
from html import escape

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mmmpq.visualization.history import SearchHistory
from mmmpq.visualization.names import common_prefix, short_names
from mmmpq.visualization.theme import WIDTH, Theme

GROUPS = 24  # from more of them on panels are too many to be looked at
TOP, BOTTOM = 0.55, 0.45  # inches above and below the rows
SIDES = 0.27, 0.94  # shares of the width


def expected_bits(
    layers: Mapping[str, tuple[int, int]], history: SearchHistory, theme: Theme
) -> Figure:
    """Σ_j p_j b_j of every group over training, of weights and of activations.

    Beside each row stands what was chosen. Float counts as 8, where the scale ends.
    """
    names, row = list(history.groups), _row(len(history.groups))
    height = TOP + row * len(names) + BOTTOM
    fig = Figure(figsize=(WIDTH, height))
    top = 1 - TOP / height
    fig.subplots_adjust(
        left=SIDES[0], right=SIDES[1], bottom=BOTTOM / height, top=top, wspace=0.04
    )
    axes = fig.subplots(1, 2, sharey=True)
    prefix = common_prefix(names)
    short = short_names([name[len(prefix) :] for name in names], 36)
    ticks = range(0, len(names), max(1, round(0.11 / row)))
    limits = (*([history.iters[0], history.iters[-1]] if history.records else [0, 1]),)
    for side, (ax, what) in enumerate(
        zip(axes, ('weights', 'activations'), strict=True)
    ):
        image = ax.imshow(
            np.array([_mean_bits(history, name, side) for name in names]),
            aspect='auto', interpolation='nearest', cmap='viridis', vmin=0, vmax=8,
            extent=(limits[0] - 0.5, limits[1] + 0.5, len(names) - 0.5, -0.5),
        )  # fmt: skip
        ax.set_title(f'bits of {what}', loc='left', fontweight='bold')
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        ax.tick_params(length=0, labelsize=6.5)
        ax.set_xlabel('iteration')
    axes[0].set_yticks(ticks, [short[names[i][len(prefix) :]] for i in ticks])
    chosen = axes[1].secondary_yaxis('right')
    bits = [layers[history.groups[name]['layers'][0]] for name in names]
    chosen.set_yticks(ticks, [f'→ W{bits[i][0]}A{bits[i][1]}' for i in ticks])
    chosen.tick_params(length=0, labelsize=6.5)
    bar = fig.add_axes((SIDES[1] - 0.16, 1 - 0.26 / height, 0.16, 0.1 / height))
    fig.colorbar(image, cax=bar, orientation='horizontal', ticks=[0, 2, 4, 6, 8])
    bar.tick_params(length=0, labelsize=6)
    return fig


def tips(history: SearchHistory) -> str:
    """Boxes over the rows of the figure, which say a group's full name and layers when
    the pointer is there, and are found by a search in the page."""
    row = _row(len(history.groups))
    percent = 100 / (TOP + row * len(history.groups) + BOTTOM)
    boxes = []
    for i, (name, group) in enumerate(history.groups.items()):
        top = percent * (TOP + i * row)
        place = f'top:{top:.3f}%;height:{percent * row:.3f}%'
        text = escape(name)
        inside = escape(', '.join(group['layers']))
        boxes.append(f'<span style="{place}" title="{text}: {inside}">{text}</span>')
    return ''.join(boxes)


def _row(count: int) -> float:
    """Inches of a row: of many groups they are lower, and not every one is named."""
    return min(0.14, 36 / max(count, 1))


def _mean_bits(history: SearchHistory, name: str, side: int) -> np.ndarray:
    """Expected bits of one group at every record."""
    bits = [min(c[side], 8) for c in history.groups[name]['candidates']]
    if not history.records:
        return np.full(1, np.nan)
    return np.array([record['probs'][name] for record in history.records]) @ bits
