"""Signal-to-noise ratios of a quantized net's layers."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from mmmpq.visualization.names import short_names
from mmmpq.visualization.theme import WIDTH, Theme


def noise(findings: Sequence[Any], theme: Theme) -> Figure:
    """Harm of every layer, the worst on the left, and its ratios below.

    Args:
        findings: Of :func:`mmmpq.post_training.diagnosis.diagnose`.
        theme: Colours.
    """
    findings = findings[:60]
    places = range(len(findings))
    fig = Figure(
        figsize=(min(WIDTH, 2.5 + 0.25 * len(findings)), 5), layout='constrained'
    )
    above, below = fig.subplots(2, 1, sharex=True)
    above.bar(places, [f.harm for f in findings], color=theme.weights)
    above.set_ylabel('harm')
    for key, label, color in (
        ('alone', 'alone', theme.weights),
        ('cumulated', 'in the quantized net', theme.activations),
    ):
        points = [(i, getattr(f, key)) for i, f in enumerate(findings)]
        points = [p for p in points if p[1] is not None]
        below.plot(*zip(*points, strict=True) if points else ([], []), 'o', color=color)
        below.lines[-1].set(label=label, markersize=3)
    below.set_ylabel('signal to noise, dB')
    below.legend()
    names = short_names([f.name for f in findings], 34).values()
    below.set_xticks(places, names, rotation=90, fontsize=6)
    return fig
