"""Recorded results turned into figures: statistics, ratios, recommendations, comparisons."""
