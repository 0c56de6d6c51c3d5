"""afnext: Audio Flamingo Next, fast and faithful.

>>> model = afnext.load("nano")
>>> reply = model.ask("clip.flac", "When does the dog bark?")

Importing this package loads nothing heavy: torch comes with the first use of what needs it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from .errors import AfnextError, AudioError, AudioWarning, ChatError, CheckpointError

if TYPE_CHECKING:
    from .assistant import Assistant, Piece, Reply, Usage
    from .assistant import load_model as load
    from .audio import AudioWindow
    from .chat import Message, Segment
    from .engine import GenerationParams

try:
    __version__ = _version("afnext")
except _PackageNotFoundError:  # a checkout that nobody installed
    __version__ = "0+unknown"

_LAZY = {
    "Assistant": ("assistant", "Assistant"),
    "AudioWindow": ("audio", "AudioWindow"),
    "GenerationParams": ("engine.params", "GenerationParams"),
    "Message": ("chat", "Message"),
    "Piece": ("reply", "Piece"),
    "Reply": ("reply", "Reply"),
    "Segment": ("chat", "Segment"),
    "Usage": ("reply", "Usage"),
    "load": ("assistant", "load_model"),
}

__all__ = [
    "AfnextError",
    "Assistant",
    "AudioError",
    "AudioWarning",
    "AudioWindow",
    "ChatError",
    "CheckpointError",
    "GenerationParams",
    "Message",
    "Piece",
    "Reply",
    "Segment",
    "Usage",
    "__version__",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'afnext' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(import_module(f".{module}", __name__), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
