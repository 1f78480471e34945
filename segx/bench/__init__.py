"""Measure cells: start worker processes, sample them in rounds, record times, memory and masks."""
