"""What a page holds, as a digest: of its tokens, of the audio behind them, and of all that comes before."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

from .prompt_audio import PromptAudio


class PageDigests:
    """Digests of a growing sequence's full pages, each computed once.

    Placeholders are the same for every recording: where a page holds some, the keys of their windows join
    the digest. Equal digests mean equal keys and values, for as long as the weights are the same.

    Args:
        page_size: tokens of a page.
        audio: of the sequence's prompt.
    """

    def __init__(self, page_size: int, audio: PromptAudio | None) -> None:
        self._page_size, self._audio = page_size, audio
        self._digests: list[bytes] = []

    def upto(self, tokens: Sequence[int], length: int) -> list[bytes]:
        """Digests of the full pages within the first ``length`` of ``tokens``; not to be changed."""
        size = self._page_size
        for page in range(len(self._digests), length // size):
            first, end = page * size, (page + 1) * size
            digest = hashlib.blake2b(digest_size=16)
            digest.update(self._digests[-1] if self._digests else b"")
            digest.update(array("q", tokens[first:end]).tobytes())
            if self._audio is not None:
                for heard in self._audio.stretches(first, end):
                    digest.update(self._audio.keys[heard.window])
                    digest.update(heard.rows.start.to_bytes(8, "little"))
            self._digests.append(digest.digest())
        count = length // size
        return self._digests if count == len(self._digests) else self._digests[:count]
