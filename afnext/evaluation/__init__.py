"""Scores: event lists against the truth, and a model on held-out clips."""
