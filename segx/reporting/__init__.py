"""Figures shown: one document per subject, drawn by one renderer per output form."""
