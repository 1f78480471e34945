"""Old name of ``segx.analysis.recommend``; kept while its importers move."""

from segx.analysis.recommend import (
    COSTS,
    Constraints,
    Decision,
    Exclusion,
    Limit,
    Pick,
    Wish,
    decide,
)

__all__ = ["COSTS", "Constraints", "Decision", "Exclusion", "Limit", "Pick", "Wish", "decide"]
