"""The audio tokens of a step: encoded, or found."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from torch import Tensor

from .prompt_audio import Stretch
from .request import Request
from .runner import Chunk
from .scheduler import Part

if TYPE_CHECKING:
    from .engine import Engine
    from .stepper import Done


class Listener:
    """Makes what goes into the model of a request's share of a step.

    Args:
        engine: whose requests.
        done: where to count.
    """

    def __init__(self, engine: Engine, done: Done) -> None:
        self._engine, self._done = engine, done

    def chunk(self, part: Part) -> Chunk:
        """The tokens of ``part`` with the audio that they hear."""
        request, first, end = part.request, part.start, part.start + part.count
        heard = []
        if request.audio is not None:
            for stretch in request.audio.stretches(first, end):
                tokens = self._window(request, stretch)[stretch.rows]
                heard.append((stretch.positions - first, tokens))
        ids = request.tokens[first:end]
        guessed = part.count - len(ids)
        ids += request.proposals[:guessed]
        logits = 1 + guessed if part.chooses else 0
        return Chunk(ids, first, request.table(), logits, heard)

    def _window(self, request: Request, stretch: Stretch) -> Tensor:
        """Audio tokens of a whole window."""
        assert request.audio is not None
        cache, key = self._engine.audio_cache, request.audio.keys[stretch.window]
        tokens = request.encoded.pop(stretch.window, None)
        if tokens is None:
            tokens = cache.get(key)
        if tokens is None:
            tokens = self._encoded(request, stretch.window)
        if not stretch.ends:
            request.encoded[stretch.window] = tokens
        return tokens

    def _encoded(self, request: Request, first: int) -> Tensor:
        """Encode a window that is not known; those behind it come along, as many as go together."""
        audio, runner, cache = request.audio, self._engine.runner, self._engine.audio_cache
        assert audio is not None
        keys = [audio.keys[first]]
        while len(keys) < runner.windows_at_once and (n := first + len(keys)) < len(audio.windows):
            if n in request.encoded or (key := audio.keys[n]) in keys:
                break
            if (known := cache.get(key)) is not None:
                request.encoded[n] = known
                break
            keys.append(key)
        windows = audio.windows[first : first + len(keys)]
        timings, clock = request.record.timings, perf_counter()
        features = runner.mel(windows)
        runner.finish()
        timings.mel += (taken := perf_counter() - clock)
        together = runner.encode(features)
        runner.finish()
        timings.encode += perf_counter() - clock - taken
        self._done.model_seconds += perf_counter() - clock
        parts = together.split([window.num_tokens for window in windows])
        if len(parts) > 1:  # each of which is held, and dropped, alone
            parts = tuple(part.clone() for part in parts)
        for n, (key, part) in enumerate(zip(keys, parts, strict=True), first):
            cache.put(key, part)
            if n > first:
                request.encoded[n] = part
        return parts[0]
