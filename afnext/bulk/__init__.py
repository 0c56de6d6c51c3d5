"""A folder of recordings to a file of answers: one line of JSON each, written as each is ready.

Importing this package loads nothing heavy.
"""

from .folder import Summary, answer_folder
from .recordings import find_recordings
from .results import Results, fingerprint

__all__ = ["Results", "Summary", "answer_folder", "find_recordings", "fingerprint"]
