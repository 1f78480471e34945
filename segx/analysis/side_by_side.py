"""Old name of ``segx.analysis.compare``; kept while its importers move."""

from segx.analysis.compare import (
    Row,
    Run,
    SideBySide,
    cell_of,
    labelled,
    side_by_side,
)

__all__ = ["Row", "Run", "SideBySide", "cell_of", "labelled", "side_by_side"]
