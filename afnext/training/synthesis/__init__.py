"""Recordings of speech, sounds and music with exact labels, deterministic by seed."""
