"""Old name of ``break_even`` in ``segx.analysis.recommend``; kept while its importers move."""

from segx.analysis.recommend import BreakEven as Payoff
from segx.analysis.recommend import Relation, cold_start_s
from segx.analysis.recommend import break_even as payoff

__all__ = ["Payoff", "Relation", "cold_start_s", "payoff"]
