"""Permutations that are computed where they are asked for: of ten million entries none is kept."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b

ROUNDS = 8
WORD = (1 << 64) - 1
FEWEST = 2  # bits of a half: with fewer, small permutations would be few


class Permutation:
    """A permutation of the numbers below ``size``, one of many by its ``key``.

    A Feistel network (Luby and Rackoff 1988) over the next power of four, walked on from what lies beyond
    ``size`` until it is back within (Black and Rogaway 2002).
    """

    def __init__(self, size: int, key: str) -> None:
        self.size = size
        self._half = max(FEWEST, ((size - 1).bit_length() + 1) // 2)
        self._mask = (1 << self._half) - 1
        digest = blake2b(key.encode(), digest_size=8 * ROUNDS).digest()
        self._keys = [int.from_bytes(digest[i : i + 8]) for i in range(0, 8 * ROUNDS, 8)]

    def __getitem__(self, place: int) -> int:
        """What stands at a place.

        Raises:
            IndexError: there is no such place.
        """
        if not 0 <= place < self.size:
            raise IndexError(f"Permutation: there is no place {place} of {self.size}")
        place = self._once(place)
        while place >= self.size:
            place = self._once(place)
        return place

    def _once(self, value: int) -> int:
        left, right = value >> self._half, value & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mixed(right ^ key) & self._mask)
        return left << self._half | right


@lru_cache(256)
def permutation(size: int, key: str) -> Permutation:
    """The same object for the same arguments, for a while."""
    return Permutation(size, key)


def _mixed(value: int) -> int:
    """Each bit of the result depends on all of the value's (SplitMix64's last steps)."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & WORD
    value = (value ^ value >> 27) * 0x94D049BB133111EB & WORD
    return value ^ value >> 31
