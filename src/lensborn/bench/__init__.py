"""Measure a detector: protocols, metrics with intervals, the format audit, tables."""
