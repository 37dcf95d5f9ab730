"""Colours and sizes that all figures share, light and dark.

One colour means one thing in all figures; the colours keep apart under colour
blindness (Okabe-Ito's).
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

DPI = 160
WIDTH = 11.0  # of a full-width figure, in inches


@dataclass(frozen=True)
class Theme:
    """Colours of a figure on a light or a dark page."""

    name: str
    page: str
    ink: str
    faint: str
    band: str
    fixed: tuple[str, str]
    weights: str
    activations: str
    expected: str
    realised: str
    over: str

    @property
    def rc(self) -> dict[str, Any]:
        ink, faint = self.ink, self.faint
        return {
            'font.size': 8,
            'text.parse_math': False,  # names of layers may have any sign in them
            'font.family': 'sans-serif',
            'axes.titlesize': 8.5,
            'axes.linewidth': 0.6,
            'axes.edgecolor': faint,
            'axes.labelcolor': ink,
            'axes.titlecolor': ink,
            'axes.spines.top': False,
            'axes.spines.right': False,
            'axes.facecolor': self.page,
            'figure.facecolor': self.page,
            'savefig.facecolor': self.page,
            'text.color': ink,
            'xtick.color': faint,
            'ytick.color': faint,
            'xtick.labelcolor': ink,
            'ytick.labelcolor': ink,
            'grid.color': faint,
            'grid.alpha': 0.35,
            'grid.linewidth': 0.5,
            'hatch.linewidth': 0.5,
            'legend.frameon': False,
            'lines.linewidth': 1.4,
        }


LIGHT = Theme(
    *('light', '#ffffff', '#1c2128', '#7d8590', '#f0f2f5', ('#8b929c', '#c3c8cf')),
    *('#0072b2', '#d55e00', '#aa4499', '#009e73', '#d55e00'),
)
DARK = Theme(
    *('dark', '#171b21', '#e3e7ec', '#8b949e', '#20262e', ('#8b929c', '#565e68')),
    *('#56b4e9', '#e69f00', '#dd8fc4', '#2fc59b', '#e69f00'),
)


def draw(figure: Callable[..., Figure], theme: Theme, *args: Any) -> bytes:
    """PNG bytes of ``figure(*args, theme)``, of 256 colours: a third of the size."""
    with matplotlib.rc_context(theme.rc):
        full, out = io.BytesIO(), io.BytesIO()
        figure(*args, theme).savefig(full, format='png', dpi=DPI)
    picture = Image.open(full).convert('RGB').quantize(256, dither=Image.Dither.NONE)
    picture.save(out, format='png', optimize=True, dpi=(DPI, DPI))
    return out.getvalue()
