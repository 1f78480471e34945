"""Colours and marks: one set of lines that is told apart on light and on dark ground, and without colours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from segx.runtimes import Variant

# Text at least 7:1 (4.5:1 where muted) on its ground, lines at least 3:1 on both: WCAG 2.2, 1.4.3 and 1.4.11.
LIGHT = {
    "ground": "#ffffff",
    "raised": "#f6f7f9",
    "line": "#d9dde3",
    "grid": "#e8ebef",
    "text": "#1b1f24",
    "muted": "#56606b",
    "edge": "#7d8792",
    "accent": "#0b5cad",
    "good": "#0a6b3d",
    "warn": "#8a4b00",
    "bad": "#a8201a",
}
DARK = {
    "ground": "#15181d",
    "raised": "#1d2127",
    "line": "#383f49",
    "grid": "#2a3038",
    "text": "#e8ebef",
    "muted": "#a3adb9",
    "edge": "#717c89",
    "accent": "#7db7f2",
    "good": "#6ccf9a",
    "warn": "#eab464",
    "bad": "#ff9a91",
}
LINES = (
    "#2f7fd1", "#d0651b", "#1d9461", "#b657b8", "#8c7a00", "#e0457b", "#0e93a3", "#8a6a55", "#7a6ff0", "#6f8f1e",
)  # fmt: skip
# Flips of masks, drawn on gray images: dark and light edges keep them apart from any ground.
REAL, BENIGN, REFERENCE, VARIANT = "#e0457b", "#2f9fd8", "#19b36b", "#ffb000"

# Markers of Plotly -> the same as an SVG path about the origin, for the legends.
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
# Dashes of Plotly -> of SVG.
_DASHES = {
    "solid": "none", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3", "longdash": "11 4", "longdashdot": "11 3 2 3",
    "5px,2px,2px,2px": "5 2 2 2",
}  # fmt: skip


@dataclass(frozen=True)
class Style:
    """How a variant is drawn, in every chart: colour, marker and dash together are unique up to 770 variants."""

    color: str
    symbol: str
    dash: str

    @property
    def svg_symbol(self) -> str:
        """The marker as an SVG path about the origin."""
        return _SYMBOLS[self.symbol]

    @property
    def svg_dash(self) -> str:
        """The dashes as SVG has them."""
        return _DASHES[self.dash]


def styles(variants: Iterable[Variant]) -> dict[Variant, Style]:
    """A style for each, in order."""
    symbols, dashes = list(_SYMBOLS), list(_DASHES)
    return {
        variant: Style(LINES[i % len(LINES)], symbols[i % len(symbols)], dashes[i % len(dashes)])
        for i, variant in enumerate(dict.fromkeys(variants))
    }
