"""Prompt lookup: what followed the last time is guessed to follow again (Saxena, 2023)."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST, SHORTEST = 3, 2  # tokens that must repeat


class PromptLookup:
    """Guesses the continuation of a growing list of tokens from its own past.

    Args:
        placeholder: a token that repeats without meaning anything.
    """

    def __init__(self, placeholder: int) -> None:
        self._placeholder = placeholder
        self._after: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def propose(self, tokens: Sequence[int], count: int) -> list[int]:
        """At most ``count`` tokens that may follow; ``tokens`` only ever grow between calls."""
        for end in range(self._indexed + 1, len(tokens)):
            for size in range(SHORTEST, LONGEST + 1):
                if end >= size and tokens[end - 1] != self._placeholder:
                    self._after[tuple(tokens[end - size : end])] = end
        self._indexed = max(self._indexed, len(tokens) - 1)
        for size in range(LONGEST, SHORTEST - 1, -1):
            found = self._after.get(tuple(tokens[-size:])) if len(tokens) >= size else None
            if found is not None:
                guessed = list(tokens[found : found + count])
                if self._placeholder in guessed:
                    del guessed[guessed.index(self._placeholder) :]
                return guessed
        return []
