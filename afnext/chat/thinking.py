"""Reasoning split from the answer, for a whole text or while it streams."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Channel = Literal["thinking", "answer"]

_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


class Piece(NamedTuple):
    """A stretch of text and where it belongs."""

    channel: Channel
    text: str


class ThinkingSplitter:
    """Sorts a stream of text into thinking and answer.

    What stands in ``<think>...</think>`` is thinking, everything else the answer; the tags themselves,
    and Music Flamingo's ``<answer>`` tags, are dropped. A tag cut in two by the stream is held back
    until it is whole or turns out to be text. Each channel starts and ends without white space, and
    two stretches of thinking are separated by a newline. How the text is cut makes no difference.

    Args:
        opened: the prompt ended inside ``<think>``, so the text begins with thinking.
    """

    def __init__(self, opened: bool = False) -> None:
        self._channel: Channel = "thinking" if opened else "answer"
        self._pending = ""
        self._blank: dict[Channel, str] = {"thinking": "", "answer": ""}
        self._begun: set[Channel] = set()

    def push(self, text: str) -> list[Piece]:
        """Take more text; returns what is certain by now, in order."""
        self._pending += text
        pieces: list[Piece] = []
        position = 0
        for tag in _TAG.finditer(self._pending):
            self._put(self._pending[position : tag.start()], pieces)
            position = tag.end()
            self._turn(tag.group().lower())
        rest = self._pending[position:]
        held = _start_of_tag(rest)
        self._put(rest[: len(rest) - held], pieces)
        self._pending = rest[len(rest) - held :]
        return pieces

    def flush(self) -> list[Piece]:
        """The end of the text: returns what was held back."""
        pieces: list[Piece] = []
        self._put(self._pending, pieces)
        self._pending = ""
        return pieces

    def _turn(self, tag: str) -> None:
        if tag == "<think>":
            if self._channel == "answer" and "thinking" in self._begun:
                self._blank["thinking"] += "\n"
            self._channel = "thinking"
        else:
            self._channel = "answer"

    def _put(self, text: str, pieces: list[Piece]) -> None:
        """Hand ``text`` on, save white space that may turn out to be at an end."""
        channel = self._channel
        body = text.rstrip()
        if not body:
            self._blank[channel] += text
            return
        if channel in self._begun:
            body = self._blank[channel] + body
        else:
            body = body.lstrip()
            self._begun.add(channel)
        self._blank[channel] = text[len(text.rstrip()) :]
        pieces.append(Piece(channel, body))


def split_thinking(text: str, opened: bool | None = None) -> tuple[str, str]:
    """Split what a model wrote into ``(thinking, answer)``, either of them "" where there is none.

    ``<think>`` without its end takes everything that follows. Music Flamingo's ``<answer>`` tags are
    dropped.

    Args:
        opened: whether the text begins inside ``<think>`` because the prompt opened it. By default it
            does if ``</think>`` comes before any ``<think>``.
    """
    if opened is None:
        first = re.search(r"</?think>", text, re.IGNORECASE)
        opened = first is not None and first.group().startswith("</")
    splitter = ThinkingSplitter(opened)
    parts: dict[Channel, list[str]] = {"thinking": [], "answer": []}
    for piece in (*splitter.push(text), *splitter.flush()):
        parts[piece.channel].append(piece.text)
    return "".join(parts["thinking"]), "".join(parts["answer"])


def _start_of_tag(text: str) -> int:
    """How many characters at the end of ``text`` may be the start of a tag."""
    start = text.rfind("<", -max(map(len, _TAGS)) + 1)
    if start < 0:
        return 0
    tail = text[start:].lower()
    return len(tail) if any(tag.startswith(tail) for tag in _TAGS) else 0
