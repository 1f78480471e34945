"""From checkpoint to module."""
