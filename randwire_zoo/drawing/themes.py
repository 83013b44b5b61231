"""What all pictures have in common: formats, colours for light and dark, shapes that do without colours, writing."""
from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from ..files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = ['DARK', 'FORMATS', 'LIGHT', 'SERIES', 'THEMES', 'Theme', 'as_words', 'check_format', 'dark_rules',
           'matplotlib_settings', 'new_figure', 'run_style', 'save', 'style', 'svg_text', 'theme_named']

FORMATS = ('.png', '.svg')
THEMES = ('auto', 'light', 'dark')
DPI = 160
LARGEST_PNG = 2_000_000  # bytes
#: Text stays text in an SVG, and the same drawing gives the same file: no random ids.
SVG_SETTINGS = {'svg.fonttype': 'none', 'svg.hashsalt': 'randwire-zoo'}
#: matplotlib's settings are those of the whole process.
_settings = RLock()


@dataclass(frozen=True)
class Theme:
    """The colours of a picture.

    Args:
        paper: The background.
        ink: Text and outlines.
        edge: Edges, axes, and text of less weight.
        node: Ordinary nodes, grids.
        input: Input nodes; blue, as in the paper's Figure 4.
        output: Output nodes; red, as there. It is much lighter than `input`, so that they differ in grey as well.
        runs: Of several runs or series in one picture, to be told apart by everybody (after Okabe and Ito).
    """

    paper: str
    ink: str
    edge: str
    node: str
    input: str
    output: str
    runs: tuple[str, ...]


LIGHT = Theme('#ffffff', '#22262e', '#6d7480', '#e9e9ee', '#1f62ad', '#ef8a62',
              ('#0067a5', '#c84f00', '#00855f', '#9b6a00', '#a3478a', '#4b5563'))
DARK = Theme('#15181d', '#e6e8ec', '#9aa2b1', '#353b46', '#2f74bd', '#f09068',
             ('#5cb3ea', '#ff9a4d', '#34c79a', '#e5b93c', '#e08fc6', '#b6bfcc'))
#: Of text on an input and on an output node, in either theme.
ON_INPUT, ON_OUTPUT = '#fdfdfd', '#1b1e24'
#: Marker and dashes of a run: what tells them apart in grey.
SERIES: tuple[tuple[str, Any], ...] = (
    ('o', '-'), ('s', '--'), ('^', '-.'), ('D', ':'), ('v', (0, (8, 2))), ('P', (0, (3, 1, 1, 1, 1, 1))))


def theme_named(name: str) -> Theme:
    """The colours by the theme's name; 'auto' is drawn light, and an SVG of it turns dark where its reader likes that.

    Raises:
        ValueError: if there is no such theme.
    """
    if name not in THEMES:
        raise ValueError(f'a theme is one of {", ".join(THEMES)}, got {name!r}')
    return DARK if name == 'dark' else LIGHT


def check_format(path: str | os.PathLike[str]) -> Path:
    """Return path if its suffix is one that can be drawn.

    Raises:
        ValueError: if the suffix is neither .png nor .svg.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f'{path}: a picture is written as {" or ".join(FORMATS)}, not {path.suffix or "no suffix"!r}')
    return path


@cache
def _picture_class() -> type[Figure]:
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A matplotlib figure, without pyplot's global state, that shows itself in a notebook."""

        theme = 'auto'

        def _repr_svg_(self) -> str:
            return svg_text(self)

    return Picture


def new_figure(theme: str, **kwargs: Any) -> Figure:
    """A figure of its own, on the theme's paper; `kwargs` are matplotlib's."""
    figure: Any = _picture_class()(facecolor=theme_named(theme).paper, **kwargs)
    figure.theme = theme
    return figure


def run_style(place: int, theme: Theme) -> dict[str, Any]:
    """Colour, marker and dashes of the run at this place in a legend; after the sixth they begin again."""
    marker, dashes = SERIES[place % len(SERIES)]
    return {'color': theme.runs[place % len(theme.runs)], 'marker': marker, 'linestyle': dashes}


def style(axes: Axes, x_label: str, y_label: str, theme: Theme = LIGHT) -> None:
    """Labels, a light grid, and no frame on the right and above: as all plots here."""
    axes.set_xlabel(x_label, fontsize=11, color=theme.ink)
    axes.set_ylabel(y_label, fontsize=11, color=theme.ink)
    axes.set_facecolor(theme.paper)
    axes.tick_params(colors=theme.edge, labelcolor=theme.ink)
    axes.grid(color=theme.node, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    axes.spines[['left', 'bottom']].set_color(theme.edge)


def dark_rules() -> str:
    """CSS that gives a picture drawn in `LIGHT` the colours of `DARK`, where the reader's system asks for dark.

    The colours in the file stay the light ones, so that what reads SVG without CSS shows the light picture.
    """
    rules = []
    for field in fields(Theme):
        light, dark = getattr(LIGHT, field.name), getattr(DARK, field.name)
        pairs = [(light, dark)] if isinstance(light, str) else zip(light, dark, strict=True)
        # By attribute alone: a marker is a copy in a tree of its own, where no `svg` stands above it.
        rules += [f'[style*="{what}: {one}"] {{ {what}: {other} !important }}'
                  for one, other in pairs for what in ('fill', 'stroke')]
    return '@media (prefers-color-scheme: dark) {\n' + '\n'.join(rules) + '\n}'


@contextmanager
def matplotlib_settings(changes: Any) -> Iterator[None]:
    """Change matplotlib's settings, by their names, for the block; one thread at a time.

    With `rc_context` alone, the end of one thread's block would take the settings away from another's, and the end of
    the other's would leave the first one's in place for good.
    """
    import matplotlib

    with _settings, matplotlib.rc_context(changes):
        yield


def as_words(text: Text) -> None:
    """Show a name or a title as it stands: matplotlib would read `$x^2$` as mathematics, and fail at `$x^$`."""
    text.set_parse_math(False)


def svg_text(figure: Figure) -> str:
    """A figure as SVG; one of the theme 'auto' turns dark with its reader's system."""
    text = io.StringIO()
    with matplotlib_settings(SVG_SETTINGS):
        figure.savefig(text, format='svg', facecolor=figure.get_facecolor(), metadata={'Date': None})
    svg = text.getvalue()
    if getattr(figure, 'theme', '') == 'auto':
        # As the first child of the picture, so that it goes wherever the picture goes.
        start = svg.index('>', svg.index('<svg')) + 1
        svg = f'{svg[:start]}\n <style type="text/css">\n{dark_rules()}\n </style>{svg[start:]}'
    return svg


def save(figure: Figure, path: Path) -> None:
    """Write a figure as the path's suffix says; a PNG takes at most 2 MB, with fewer pixels where it must."""
    with atomic_path(path) as temporary:
        if path.suffix.lower() == '.svg':
            temporary.write_text(svg_text(figure), encoding='utf-8')
            return
        dpi = float(DPI)
        while True:
            figure.savefig(temporary, dpi=dpi, format='png', facecolor=figure.get_facecolor())
            if temporary.stat().st_size <= LARGEST_PNG:
                return
            dpi *= 0.8
