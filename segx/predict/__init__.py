"""Segment image files: read, infer, write masks."""
