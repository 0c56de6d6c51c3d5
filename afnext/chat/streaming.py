"""Text from ids that come one at a time, by whole characters."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from afnext.chat.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class StreamDecoder:
    """Turns ids into text as they come: only whole characters, each once.

    What all calls return together is ``tokenizer.decode`` of all ids (with a decoder that is not
    byte-level, if they hold valid UTF-8). A character whose bytes are spread over several tokens comes
    with the last of them; bytes that can never become one come as U+FFFD, at the latest with
    :meth:`flush`. Special tokens write nothing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = tokenizer.decodes_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._context: list[int] = []  # some decoders treat the start of a text differently
        self._fresh: list[int] = []
        self._emitted = 0

    def push(self, id: int) -> str:
        """The text that the next id completes, often none."""
        if self._tokenizer.is_special(id):
            return ""
        if self._bytes:
            return self._utf8.decode(piece_bytes(self._tokenizer.token(id) or ""))
        self._fresh.append(id)
        text = self._tokenizer.decode(self._context + self._fresh)
        whole = text.rstrip(_REPLACEMENT)
        piece = whole[self._emitted :]
        self._emitted = max(self._emitted, len(whole))
        if piece and whole == text:
            self._context, self._fresh = self._fresh, []
            self._emitted = len(self._tokenizer.decode(self._context))
        return piece

    def flush(self) -> str:
        """The end: whatever was waiting for more bytes."""
        if self._bytes:
            return self._utf8.decode(b"", final=True)
        return self._tokenizer.decode(self._context + self._fresh)[self._emitted :]


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level BPE (GPT-2, Radford et al. 2019):
    printable ones stand for themselves, the others, in order, for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (b for b in range(256) if b not in set(printable))
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_alphabet()


def piece_bytes(piece: str) -> bytes:
    """The bytes of a piece; one with a character outside the alphabet (an added token) is text."""
    try:
        return bytes(_BYTES[c] for c in piece)
    except KeyError:
        return piece.encode()
