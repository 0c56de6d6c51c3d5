"""A prompt whose recordings are still being read."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

from afnext.audio.recording import Recording
from afnext.audio.windows import AudioWindow
from afnext.chat.prompt import TAKER, PromptIds, too_long

Stretch = tuple[list[int], list[AudioWindow]]


@dataclasses.dataclass(frozen=True, slots=True)
class GrowingPrompt:
    """What goes to the model, as far as it is known.

    Attributes:
        ids, windows: up to where the first recording that is not complete was read.
        more: what comes behind, a stretch of ids and the windows of its placeholders at a time; raises what
            reading a recording raises, and ``ChatError`` where the prompt becomes too long. None: nothing.
        expected: tokens of the whole prompt, as far as the headers of its recordings can be believed.
    """

    ids: list[int]
    windows: list[AudioWindow]
    more: Rest | None
    expected: int


def growing(
    prompt: PromptIds,
    recordings: Sequence[Recording],
    max_tokens: int | None = None,
    taker: str = TAKER,
) -> GrowingPrompt:
    """Cut a prompt that was built of each recording's first windows where the others belong.

    Args:
        prompt: see ``build_prompt``.
        recordings: those of the conversation, in order.
        max_tokens, taker: see ``build_prompt``.

    Raises:
        ChatError: the headers of the recordings say that the prompt is too long.
    """
    audio = sum(span.length for span in prompt.spans)
    unread = [(s, r) for s, r in zip(prompt.spans, recordings, strict=True) if not r.complete]
    certain = sum(max(0, r.certain_tokens - s.length) for s, r in unread)
    if max_tokens is not None and len(prompt.ids) + certain > max_tokens:
        raise too_long(len(prompt.ids) + certain, audio + certain, max_tokens, taker)
    expected = len(prompt.ids) + sum(max(0, r.expected_tokens - s.length) for s, r in unread)
    if not unread:
        return GrowingPrompt(list(prompt.ids), list(prompt.windows), None, expected)
    first = unread[0][0]
    end = first.start + first.length
    windows = [w for w in prompt.windows if w.recording <= first.recording]
    rest = Rest(_rest(prompt, recordings, first.recording, max_tokens, taker), recordings)
    return GrowingPrompt(prompt.ids[:end], windows, rest, expected)


class Rest(Iterator[Stretch]):
    """What comes behind, with the recordings that it is read from; closing it closes them, begun or not."""

    def __init__(self, stretches: Generator[Stretch], recordings: Sequence[Recording]) -> None:
        self._stretches, self._recordings = stretches, recordings

    def __next__(self) -> Stretch:
        return next(self._stretches)

    def close(self) -> None:
        """Read no further."""
        self._stretches.close()
        for recording in self._recordings:
            recording.close()


def _rest(
    prompt: PromptIds,
    recordings: Sequence[Recording],
    first: int,
    max_tokens: int | None,
    taker: str,
) -> Generator[Stretch]:
    """What stands behind the first windows of recording ``first``."""
    tokens, audio = len(prompt.ids), sum(span.length for span in prompt.spans)
    at = prompt.spans[first].start
    for span, recording in zip(prompt.spans[first:], recordings[first:], strict=True):
        end = span.start + span.length
        if span.recording > first:
            yield prompt.ids[at:end], [w for w in prompt.windows if w.recording == span.recording]
        at = end
        with closing(recording.rest()) as rest:
            for window in rest:
                tokens, audio = tokens + window.num_tokens, audio + window.num_tokens
                if max_tokens is not None and tokens > max_tokens:
                    raise too_long(tokens, audio, max_tokens, taker)
                yield [prompt.ids[span.start]] * window.num_tokens, [window]
    yield prompt.ids[at:], []
