"""Old name of ``segx.analysis.recommend``; kept while its importers move."""

from segx.analysis.recommend import (
    Change,
    Condition,
    changes,
)

__all__ = ["Change", "Condition", "changes"]
