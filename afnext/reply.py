"""From tokens to a reply: text, thinking, timestamps and stop strings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .audio.recording import Recording
from .chat import Segment, Tokenizer, parse_timestamps
from .chat.thinking import ThinkingSplitter
from .engine import STREAM, Engine, Generation, Handle, Timings, TokenLogprob


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request took in and gave out.

    Attributes:
        prompt_tokens: text and audio tokens of the prompt.
        audio_tokens: of these, audio (25 a second).
        completion_tokens: generated, thinking included.
        audio_seconds: length of all recordings.
        cached_tokens: of the prompt's, tokens that an earlier request had left computed.
    """

    prompt_tokens: int
    audio_tokens: int
    completion_tokens: int
    audio_seconds: float
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        text: the answer without the thinking.
        thinking: what the model wrote in ``<think>``, or "".
        segments: the answer's timestamps, in seconds, with what each is about.
        usage: tokens and seconds.
        timings: where the time went.
        stopped: "end" (the model was done), "length" (``max_tokens`` or the context ran out), "stop"
            (a stop string), "timeout".
        logprobs: of each token, where they were asked for.
        others: the other answers, where ``n`` were asked for.
    """

    text: str
    thinking: str
    segments: list[Segment]
    usage: Usage
    timings: Timings
    stopped: str
    logprobs: list[TokenLogprob] = field(default_factory=list)
    others: list[Reply] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of streamed text, made of whole characters.

    Attributes:
        text: may be "" in the last piece.
        thinking: whether it belongs to the thinking.
        reply: the whole reply, in the last piece only.
    """

    text: str
    thinking: bool = False
    reply: Reply | None = None

    def __str__(self) -> str:
        return self.text


class ReplyWriter:
    """Writes one reply as its tokens come.

    Args:
        tokenizer: of the model.
        stop: strings before which the answer ends.
        recordings: that were asked about; complete when the answer is.
        opened: the prompt ended inside ``<think>``.
        decoding: seconds that were spent on them before the request began.

    Attributes:
        stopped: a stop string was found, and nothing more is wanted.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str],
        recordings: Sequence[Recording],
        opened: bool,
        decoding: float,
    ) -> None:
        self.stopped = False
        self._recordings, self._decoding = recordings, decoding
        self._decoder, self._splitter = tokenizer.stream(), ThinkingSplitter(opened)
        self._stops = _StopStrings(tuple(stop))
        self._parts: dict[bool, list[str]] = {True: [], False: []}
        self._tokens = 0

    def push(self, token: int) -> Iterator[Piece]:
        """What is certain to be said, after one more token."""
        self._tokens += 1
        yield from self._split(self._stops.push(self._decoder.push(token)))
        self.stopped = self._stops.found

    def finish(self, record: Generation, others: Sequence[Reply] = ()) -> Iterator[Piece]:
        """The end: what was held back, then a piece with the reply."""
        rest = "" if self.stopped else self._stops.push(self._decoder.flush()) + self._stops.flush()
        yield from self._split(rest, last=True)
        text, thinking = "".join(self._parts[False]), "".join(self._parts[True])
        timings, decoding = record.timings, self._decoding
        seconds = [r.seconds for r in self._recordings]
        reply = Reply(
            text=text,
            thinking=thinking,
            segments=parse_timestamps(text, duration=max(seconds, default=0.0) or None),
            usage=Usage(
                record.prompt_tokens,
                record.audio_tokens,
                self._tokens,
                round(sum(seconds), 3),
                record.cached_tokens,
            ),
            timings=replace(
                timings,
                decode_audio=timings.decode_audio + decoding,
                first_token=timings.first_token + decoding,
                total=timings.total + decoding,
            ),
            stopped="stop" if self.stopped else record.stopped,
            logprobs=record.logprobs[: self._tokens],
            others=list(others),
        )
        yield Piece("", reply=reply)

    def _split(self, text: str, last: bool = False) -> Iterator[Piece]:
        splitter = self._splitter
        for channel, piece in (*splitter.push(text), *(splitter.flush() if last else ())):
            self._parts[channel == "thinking"].append(piece)
            yield Piece(piece, channel == "thinking")


class Answer:
    """A conversation's answer in progress, with the other samples of it where there are some.

    Args:
        engine: that works on it.
        samples: each one's handle and what writes its reply; the first is the one that is streamed.
    """

    def __init__(self, engine: Engine, samples: Sequence[tuple[Handle, ReplyWriter]]) -> None:
        self._engine, self._samples = engine, samples

    @property
    def wanted(self) -> list[Handle]:
        """Handles that more is to come from."""
        return [h for h, writer in self._samples if not (writer.stopped or h.exhausted)]

    def advance(self) -> Iterator[Piece]:
        """What is said by the tokens that are there; nobody waits."""
        for number, (handle, writer) in enumerate(self._samples):
            for token in handle.take():
                if writer.stopped:  # tokens that came before anybody could stop them
                    break
                pieces = list(writer.push(token))
                if number == 0:
                    yield from pieces
            if writer.stopped:
                handle.cancel()

    def finish(self) -> Iterator[Piece]:
        """The last pieces, once nothing is ``wanted``; raises what the request failed with."""
        for handle, _ in self._samples:
            if handle.error is not None:
                raise handle.error
        (first, writer), *others = self._samples
        replies = [list(w.finish(h.record))[-1].reply for h, w in others]
        yield from writer.finish(first.record, [r for r in replies if r is not None])

    def cancel(self) -> None:
        """Give up what is not complete, and free its pages."""
        for handle, _ in self._samples:
            handle.cancel()

    def pieces(self) -> Iterator[Piece]:
        """All pieces as they come; closing the iterator gives the answer up."""
        try:
            while wanted := self.wanted:
                self._engine.wait(wanted, STREAM)
                yield from self.advance()
            yield from self.finish()
        finally:
            self.cancel()

    async def apieces(self) -> AsyncIterator[Piece]:
        """As ``pieces``, for a task."""
        try:
            while wanted := self.wanted:
                await self._engine.wait_async(wanted, STREAM)
                for piece in self.advance():
                    yield piece
            for piece in self.finish():
                yield piece
        finally:
            self.cancel()


@dataclass(slots=True)
class _StopStrings:
    """Holds back text that may be the start of a stop string."""

    stops: tuple[str, ...]
    found: bool = False
    _held: str = field(default="", repr=False)

    def push(self, text: str) -> str:
        """Text that is certain to come before any stop string."""
        if not self.stops:
            return text
        self._held += text
        at = min((i for s in self.stops if (i := self._held.find(s)) >= 0), default=-1)
        if at >= 0:
            self.found = True
            text, self._held = self._held[:at], ""
            return text
        keep = max(
            n for s in self.stops for n in range(len(s)) if n == 0 or self._held.endswith(s[:n])
        )
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def flush(self) -> str:
        """The end: what was held back is text after all."""
        text, self._held = self._held, ""
        return text
