"""Names that moved to ``segx.masks.preprocess``."""

from segx.masks.preprocess import model_inputs

__all__ = ["model_inputs"]
