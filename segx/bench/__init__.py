"""Measure cells: start worker processes, take turns, record times, memory and masks."""
