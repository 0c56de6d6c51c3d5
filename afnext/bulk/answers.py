"""One recording of a folder, asked of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afnext.chat import Message

from .folder import Answer
from .pool import Stop

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

    def answer(path: Path, stop: Stop) -> Mapping[str, Any]:
        message = Message("user", question, path)
        asked = assistant.start([message], params=params, truncate=truncate, partial=partial)
        with stop.cancelling(asked.cancel):
            *_, last = asked.pieces()
        if stop.is_set() or last.reply is None:
            raise InterruptedError("nobody waits for the answer")
        return last.reply.to_dict()

    return answer
