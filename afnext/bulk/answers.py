"""One recording of a folder, asked of a model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from afnext.chat import Message

from .folder import Answer

if TYPE_CHECKING:
    from afnext.assistant import Assistant


def asking(
    assistant: Assistant,
    question: str,
    *,
    truncate: bool = False,
    partial: bool = False,
    **options: Any,
) -> Answer:
    """A function for ``answer_folder`` that asks ``question`` about a recording.

    Args:
        truncate, partial, options: as of ``Assistant.stream``; wrong ones raise here.
    """
    params = assistant.params(**options)

    def answer(path: Path, stop: Event) -> Mapping[str, Any]:
        message = Message("user", question, path)
        stream = assistant.stream([message], params=params, truncate=truncate, partial=partial)
        with closing(stream) as pieces:  # type: ignore[type-var]
            for piece in pieces:
                if piece.reply is not None:
                    return piece.reply.to_dict()
                if stop.is_set():
                    break
        raise InterruptedError("nobody waits for the answer")

    return answer
