"""Figures shown: one document per subject, one renderer per output form."""
