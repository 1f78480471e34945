"""A checkpoint becomes a module."""
