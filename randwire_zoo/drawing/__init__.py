"""Pictures: wiring, the course of a training, predictions, detections; a module for each, and what they have in common.
`history` reads the course that a training has recorded.

Everything is drawn on a matplotlib figure of its own, without pyplot and its global state, so that a training or a
test may draw from any thread; SVGs, for which matplotlib's settings change, are written one after the other. The suffix
of a path, .png or .svg, decides the format. matplotlib and Graphviz are imported when something is drawn.
"""
from .curves import draw_curves, draw_detection_curves
from .detections import draw_detections
from .predictions import draw_predictions
from .themes import (
           DARK,
           FORMATS,
           LIGHT,
           THEMES,
           Theme,
           check_format,
           dark_rules,
           new_figure,
           run_style,
           style,
           svg_text,
)
from .wiring import draw, draw_graphs, graphs_figure, layered_layout, panel_names

__all__ = ['DARK', 'FORMATS', 'LIGHT', 'THEMES', 'Theme', 'check_format', 'dark_rules', 'draw', 'draw_curves',
           'draw_detection_curves', 'draw_detections', 'draw_graphs', 'draw_predictions', 'graphs_figure',
           'layered_layout', 'new_figure', 'panel_names', 'run_style', 'style', 'svg_text']
