"""Figures of what a search chose: bits of the layers, probabilities of the groups.

Drawn on Matplotlib's ``Figure`` objects, without pyplot and its global state.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from mmmpq.policy import Precision
from mmmpq.visualization.history import SearchHistory
from mmmpq.visualization.names import common_prefix, short_names
from mmmpq.visualization.theme import WIDTH, Theme

Layers = Mapping[str, Precision]  # in network order
Pair = tuple[int, int]  # bits of weights and of activations


def bits(
    layers: Layers, history: SearchHistory, theme: Theme, per_row: int = 48
) -> Figure:
    """Bits of every layer in network order, in rows of at most ``per_row`` layers.

    The groups of ``history`` tell searched from fixed layers.
    """
    rows = math.ceil(len(layers) / per_row) or 1
    size = math.ceil(len(layers) / rows) or 1
    names = list(layers)
    chunks = [names[i * size : (i + 1) * size] for i in range(rows)]
    width = min(WIDTH, 2.5 + 0.3 * size)
    longest = max((min(len(n), 34) for n in names), default=0)
    height = rows * (1.85 + 0.055 * longest) + 0.4
    fig = Figure(figsize=(width, height), layout='constrained')
    ticks = _bit_ticks({b for precision in layers.values() for b in precision})
    axes = fig.subplots(rows, 1, squeeze=False)[:, 0]
    for ax, chunk in zip(axes, chunks, strict=True):
        _bits_row(ax, chunk, layers, ticks, history.group_of, theme)
        ax.set_xticks(
            range(len(chunk)),
            _tick_names(ax, chunk, (width - 0.6) / size, theme),
            rotation=90,
        )
        ax.tick_params(axis='x', length=0, labelsize=7)
        widths = [str(b) if b <= 8 else 'float' for b in ticks]
        ax.set_yticks(list(ticks.values()), widths, fontsize=7)
        ax.set_ylim(0, max(ticks.values()) + 0.3)
        ax.set_xlim(-0.6, size - 0.4)
        ax.set_ylabel('bits')
        ax.grid(axis='y')
        ax.set_axisbelow(True)
    handles = [
        Patch(color=theme.weights, label='weights'),
        Patch(color=theme.activations, label='activations'),
    ]
    if any(name not in history.group_of for name in names):
        handles += [
            Patch(fc=c, ec=theme.page, hatch='/////', label=f'{kind}, fixed')
            for c, kind in zip(theme.fixed, ('weights', 'activations'), strict=True)
        ]
    fig.legend(handles=handles, loc='outside upper center', ncols=len(handles))
    return fig


def _bit_ticks(widths: set[int]) -> dict[int, float]:
    """Height of every bit-width; float stands just above the widest other one."""
    top = max((b for b in widths if 0 < b <= 8), default=1)
    heights = {b: b for b in range(top + 1)}  # 0 is a skipped block
    return {**heights, 32: top + 1.5} if max(widths, default=0) > 8 else heights


def _bits_row(
    ax: Axes,
    chunk: Sequence[str],
    layers: Layers,
    heights: Mapping[int, float],
    group_of: Mapping[str, str],
    theme: Theme,
) -> None:
    """The bars of one row; a band lies behind every second group."""
    groups = [group_of.get(name) for name in chunk]
    runs = [i for i, g in enumerate(groups) if not i or g is None or g != groups[i - 1]]
    ends = runs[1:] + [len(chunk)]
    for start, end in zip(runs[::2], ends[::2], strict=True):
        ax.axvspan(start - 0.5, end - 0.5, color=theme.band, zorder=0)
    for i, name in enumerate(chunk):
        fixed = name not in group_of
        colors = theme.fixed if fixed else (theme.weights, theme.activations)
        for side, width, color in zip((-0.2, 0.2), layers[name], colors, strict=True):
            style = dict(ec=theme.page, lw=0.4, hatch='/////' if fixed else None)
            ax.bar(i + side, heights[width], 0.4, color=color, zorder=2, **style)


def _tick_names(ax: Axes, chunk: Sequence[str], slot: float, theme: Theme) -> list[str]:
    """Names under the bars, ``slot`` inches each; a run's module is above it, once."""
    modules = [name.split('.')[0] for name in chunk]
    labels, start = [], 0
    while start < len(chunk):
        end = start
        while end < len(chunk) and modules[end] == modules[start]:
            end += 1
        if start:
            ax.axvline(start - 0.5, color=theme.faint, lw=0.7, zorder=1)
        title = modules[start]
        roomy = 0.08 * len(title) <= slot * (end - start) and title != chunk[start]
        if roomy:
            style = dict(ha='left', va='bottom', fontweight='bold', fontsize=8)
            place = ax.get_xaxis_transform()
            ax.text(start - 0.4, 1.01, title, transform=place, **style)
        cut = len(title) + 1 if roomy else 0
        labels += short_names([name[cut:] for name in chunk[start:end]], 34).values()
        start = end
    return labels


def candidate_colors(groups: Mapping[str, Any]) -> dict[Pair, str]:
    """Colour of every candidate, from few average bits (dark) to many (bright)."""
    every = {tuple(c) for group in groups.values() for c in group['candidates']}
    ordered = sorted(every, key=lambda c: (sum(c), c))
    places = np.linspace(0.06, 0.96, len(ordered)) if len(ordered) > 1 else [0.5]
    viridis = matplotlib.colormaps['viridis']
    return {c: to_hex(viridis(place)) for c, place in zip(ordered, places, strict=True)}


def probabilities(layers: Layers, history: SearchHistory, theme: Theme) -> Figure:
    """One panel per group: stacked probabilities of its candidates over training."""
    groups, colors = history.groups, candidate_colors(history.groups)
    columns = min(max(len(groups), 1), 4 if len(groups) <= 16 else 6)
    rows = math.ceil(len(groups) / columns) or 1
    panel = (WIDTH - 0.8) / columns
    tall = 1.25 if columns <= 4 else 0.85
    legend_rows = math.ceil(len(colors) / 10)
    top, bottom, gap = 0.12 + 0.18 * legend_rows, 0.5, 0.32
    height = top + rows * (tall + gap) + bottom
    width = 0.8 + columns * panel
    fig = Figure(figsize=(width, height))
    sides = dict(left=0.6 / width, right=1 - 0.2 / width, bottom=bottom / height)
    gaps = dict(wspace=0.12, hspace=gap / tall)
    fig.subplots_adjust(top=1 - (top + gap) / height, **sides, **gaps)
    axes = fig.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    chosen = {name: tuple(layers[g['layers'][0]]) for name, g in groups.items()}
    longest = max((len(_label(bits)) for bits in chosen.values()), default=0)
    cut = len(common_prefix(groups))
    short = short_names([n[cut:] for n in groups], int(panel * 14.7) - longest - 2)
    iters = history.iters
    if len(iters) == 1:  # a single record has no width
        iters = [iters[0] - 0.5, iters[0] + 0.5]
    for index, ax in enumerate(axes.flat):
        if index >= len(groups):
            ax.set_axis_off()
            continue
        name = list(groups)[index]
        titles = short[name[cut:]], _label(chosen[name])
        _share_panel(ax, name, titles, history, iters, colors, theme.page)
        ax.tick_params(labelbottom=index + columns >= len(groups), labelsize=7)
    fig.supxlabel('iteration', fontsize=8, y=0.08 / height, va='bottom')
    fig.supylabel('probability', fontsize=8, x=0.1 / width)
    handles = [
        Patch(fc=c, ec=theme.faint, lw=0.5, label=_label(k)) for k, c in colors.items()
    ]
    spaces = dict(handlelength=1.1, columnspacing=1.2, borderaxespad=0.2)
    fig.legend(handles=handles, loc='upper center', ncols=10, **spaces)
    return fig


def _label(candidate: Pair) -> str:
    if not any(candidate):
        return 'skip'
    w_bits, a_bits = ('float' if bits > 8 else bits for bits in candidate)
    return f'W{w_bits}A{a_bits}'


def _share_panel(
    ax: Axes,
    name: str,
    titles: tuple[str, str],
    history: SearchHistory,
    iters: Sequence[float],
    colors: Mapping[Pair, str],
    page: str,
) -> None:
    candidates = [tuple(c) for c in history.groups[name]['candidates']]
    rank = list(colors).index
    order = sorted(range(len(candidates)), key=lambda j: rank(candidates[j]))
    ax.set_title(titles[0], loc='left', fontsize=7, pad=3)
    ax.set_title(f'→ {titles[1]}', loc='right', fontsize=7, pad=3, fontweight='bold')
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 0.5, 1], ['0', '½', '1'])
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if not history.records:
        ax.text(0.5, 0.5, 'no record yet', ha='center', transform=ax.transAxes)
        return
    shares = np.array([record['probs'][name] for record in history.records]).T
    if shares.shape[1] == 1:
        shares = shares.repeat(2, axis=1)
    ordered = [colors[candidates[j]] for j in order]
    ax.stackplot(iters, shares[order], colors=ordered, ec=page, lw=0.25)
    ax.set_xlim(iters[0], iters[-1])
