"""Colours, markers and dashes of pages and charts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Name -> (light, dark). Contrast with the ground by WCAG 2.2 (1.4.3, 1.4.11): text at least 7:1, muted text 4.5:1,
# lines 3:1.
COLORS = {
    "ground": ("#ffffff", "#15181d"),
    "raised": ("#f6f7f9", "#1d2127"),
    "line": ("#d9dde3", "#383f49"),
    "grid": ("#e8ebef", "#2a3038"),
    "text": ("#1b1f24", "#e8ebef"),
    "muted": ("#56606b", "#a3adb9"),
    "edge": ("#7d8792", "#717c89"),
    "accent": ("#0b5cad", "#7db7f2"),
    "good": ("#0a6b3d", "#6ccf9a"),
    "warn": ("#8a4b00", "#eab464"),
    "bad": ("#a8201a", "#ff9a91"),
    "doubt": ("#fdf3e1", "#2b2316"),
    "bar": ("#cfe2f6", "#1f3c5a"),
}
LIGHT, DARK = ({name: pair[i] for name, pair in COLORS.items()} for i in (0, 1))

LINES = (
    "#2f7fd1", "#d0651b", "#1d9461", "#b657b8", "#8c7a00", "#e0457b", "#0e93a3", "#8a6a55", "#7a6ff0", "#6f8f1e",
    "#9888a8", "#786098", "#a85070", "#087870", "#889070", "#008000",
)  # fmt: skip
# Overlays on pictures, by layer.
OVERLAYS = {"real": "#e0457b", "benign": "#2f9fd8", "reference": "#19b36b", "variant": "#ffb000"}

# Plotly marker -> the same shape as an SVG path around the origin, for legends.
_SYMBOLS = {
    "circle": "M4.5 0A4.5 4.5 0 1 1-4.5 0A4.5 4.5 0 1 1 4.5 0Z",
    "square": "M-4-4H4V4H-4Z",
    "diamond": "M0-5.5 5.5 0 0 5.5-5.5 0Z",
    "triangle-up": "M0-5 5 3.8H-5Z",
    "cross": "M-1.6-5H1.6V-1.6H5V1.6H1.6V5H-1.6V1.6H-5V-1.6H-1.6Z",
    "x": "M-4.6-2.6-2.6-4.6 0-2 2.6-4.6 4.6-2.6 2 0 4.6 2.6 2.6 4.6 0 2-2.6 4.6-4.6 2.6-2 0Z",
    "triangle-down": "M0 5 5-3.8H-5Z",
    "star": "M0-5.5 1.3-1.8 5.2-1.7 2.1.7 3.2 4.5 0 2.3-3.2 4.5-2.1.7-5.2-1.7-1.3-1.8Z",
    "pentagon": "M0-5 4.8-1.5 2.9 4H-2.9L-4.8-1.5Z",
    "hexagon": "M0-5 4.3-2.5V2.5L0 5-4.3 2.5V-2.5Z",
    "bowtie": "M-5-4V4L0 0 5 4V-4L0 0Z",
}
# Plotly dash -> SVG dash array.
_DASHES = {
    "solid": "none", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "11 4", "longdashdot": "11 3 2 3",
    "5px,2px,2px,2px": "5 2 2 2",
}  # fmt: skip


@dataclass(frozen=True)
class LineStyle:
    """The colour, marker and dash of one variant or run in every chart of a page."""

    color: str
    symbol: str
    dash: str

    @property
    def svg_symbol(self) -> str:
        """Return the marker as an SVG path around the origin."""
        return _SYMBOLS[self.symbol]

    @property
    def svg_dash(self) -> str:
        """Return the dash as an SVG dash array."""
        return _DASHES[self.dash]


def line_styles(names: Iterable[str]) -> dict[str, LineStyle]:
    """Return a style for each name, in order; up to 77 differ in marker and dash, so not only in colour."""
    symbols, dashes = list(_SYMBOLS), list(_DASHES)
    return {
        name: LineStyle(LINES[i % len(LINES)], symbols[i % len(symbols)], dashes[i % len(dashes)])
        for i, name in enumerate(dict.fromkeys(names))
    }
