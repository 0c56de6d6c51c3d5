"""Errors that a caller may want to catch; each is also a ``ValueError``. And a warning.

The command line prints their message as one line and exits with code 1.
"""


class AfnextError(ValueError):
    """Base of every error that afnext raises about its input."""


class AudioError(AfnextError):
    """The audio cannot be read, is empty or too long, or holds NaN or infinity.

    Args:
        why: what is wrong with it.
        remedy: options of ``load`` and of the command that would take it none the less, for callers that
            have them; a part of the message.
    """

    def __init__(self, why: str, remedy: str = "") -> None:
        super().__init__(why, *([remedy] if remedy else []))
        self.why = why

    def __str__(self) -> str:
        return "; ".join(self.args)


class AudioWarning(UserWarning):
    """Audio was used although part of it is missing, or may be; or was left out where other would do."""


class CheckpointError(AfnextError):
    """A model folder is missing, incomplete, corrupt or has an impossible geometry."""


class ChatError(AfnextError):
    """A conversation, template or tokenizer is malformed."""
