"""Ops and decode steps on a GPU, beside torch's: one call that builds, checks and measures."""
