"""Errors that a caller may want to catch; each is also a ``ValueError``.

The command line prints their message as one line and exits with code 1.
"""


class AfnextError(ValueError):
    """Base of every error that afnext raises about its input."""


class AudioError(AfnextError):
    """The audio cannot be read, is empty or too long, or holds NaN or infinity."""


class CheckpointError(AfnextError):
    """A model folder is missing, incomplete, corrupt or has an impossible geometry."""


class ChatError(AfnextError):
    """A conversation, template or tokenizer is malformed."""
