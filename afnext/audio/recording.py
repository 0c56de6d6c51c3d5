"""A recording that is used from its beginning while its end is still being decoded."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import cast

from .info import AudioInfo, AudioSource
from .loading import MAX_SECONDS, stream_windows
from .windows import SAMPLE_RATE, TOKEN_SECONDS, AudioWindow

AHEAD = 2  # windows that are read at once: what is shorter takes no longer than handing it on
# Seconds by which a whole recording may be shorter than its header says; as decoders tolerate, and more.
SHORTER = 1.0


class Recording:
    """The first windows of a recording, and the others when they are asked for.

    What is wrong with the header or the first windows raises here, what comes behind in ``rest``.

    Args:
        source, max_seconds, truncate, partial, recording, sample_rate: as of ``load``.

    Attributes:
        first: its first windows, at least one.
        complete: whether there are no others.
        seconds: of the windows that were read so far.

    Raises:
        AudioError: as ``load``; also one that is too short for an audio token, since the model would
            answer as if there were no recording.
    """

    def __init__(
        self,
        source: AudioSource,
        *,
        max_seconds: float = MAX_SECONDS,
        truncate: bool = False,
        partial: bool = False,
        recording: int = 0,
        sample_rate: int | None = None,
    ) -> None:
        self.seconds = 0.0
        header: list[AudioInfo] = []
        self._max_seconds, self._partial = max_seconds, partial
        # A generator, so that the file is closed when nobody wants the rest.
        self._windows = cast(
            "Generator[AudioWindow]",
            stream_windows(
                source, max_seconds=max_seconds, truncate=truncate, partial=partial,
                recording=recording, sample_rate=sample_rate, told=header.append, audible=True,
            ),
        )  # fmt: skip
        self.first: list[AudioWindow] = []
        self.complete = False
        # An array is not decoded, and its owner may write over it: it is copied now.
        ahead = math.inf if hasattr(source, "shape") else AHEAD
        while len(self.first) < ahead and not self.complete:
            self.first += self._next()
        self._stated = header[0].duration or 0.0

    def rest(self) -> Generator[AudioWindow]:
        """The windows behind ``first``, once; closing the iterator closes the file.

        Raises:
            AudioError: the recording is damaged, cut short or too long.
        """
        try:
            while not self.complete:
                yield from self._next()
        finally:
            self.close()

    @property
    def expected_tokens(self) -> int:
        """Audio tokens that it will have, as far as the header can be believed."""
        stated = min(self._stated, self._max_seconds)
        return int(max(self.seconds, 0 if self.complete else stated) / TOKEN_SECONDS)

    @property
    def certain_tokens(self) -> int:
        """Audio tokens that it has at least, unless reading it fails; 0 where nobody knows."""
        stated = 0.0 if self._partial else min(self._stated, self._max_seconds)
        return int(max(0.0, stated - SHORTER) / TOKEN_SECONDS)

    def close(self) -> None:
        """Read no further."""
        self._windows.close()

    def _next(self) -> list[AudioWindow]:
        window = next(self._windows, None)
        if window is None:
            self.complete = True
            return []
        self.seconds += window.valid_samples / SAMPLE_RATE
        return [window]
