"""Names that moved to ``segx.masks.agreement``."""

from segx.masks.agreement import BENIGN, MARGIN_EDGES, REAL, SAME, Flips, MarginHistogram, classify_flips

__all__ = ["BENIGN", "MARGIN_EDGES", "REAL", "SAME", "Flips", "MarginHistogram", "classify_flips"]
