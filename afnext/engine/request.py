"""A request: what was asked, what came of it so far, and where its time went."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from .params import GenerationParams
from .prefix import PageDigests
from .prompt_audio import PromptAudio

if TYPE_CHECKING:
    from .draft import DraftSequence
    from .feed import Feed
    from .sampler import Sampler
    from .speculation import PromptLookup


@dataclass(slots=True)
class Timings:
    """Where the time of one request went, in seconds.

    A step serves several requests: its time counts for each of them.

    Attributes:
        decode_audio: reading, resampling and cutting the recordings; all but the beginning of a long one
            while what came before is encoded and read.
        mel: log-mel features.
        encode: encoder and adaptor.
        prefill: steps with more of the prompt than one token.
        first_token: from the start of the request to its first token, reading the recordings included.
        generate: from the first token to the last.
        total: the whole request.
        tokens_per_second: of the decode steps after the first token; 0 where there were none.
        gigabytes_per_second: weights and cache read for this request by those steps, over their time.
    """

    decode_audio: float = 0.0
    mel: float = 0.0
    encode: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0
    generate: float = 0.0
    total: float = 0.0
    tokens_per_second: float = 0.0
    gigabytes_per_second: float = 0.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a generated token was, by the model alone.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability, without temperature and penalties.
        top: the likeliest tokens and theirs, the likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Generation:
    """What came of a request; final once ``stopped`` is set.

    Attributes:
        prompt_tokens: of the whole prompt, as far as it was read.
        audio_tokens: of these, audio.
        cached_tokens: of these, tokens whose keys and values were there already.
        tokens: generated so far, the end token not included.
        logprobs: of each token, where they were asked for.
        stopped: "end" (the model ended its turn), "length", "timeout", "cancelled", or "" while running
            and after an error.
        timings: where the time went.
        others: the second answer and those after it, where several were asked for.
    """

    prompt_tokens: int
    audio_tokens: int
    cached_tokens: int = 0
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    stopped: str = ""
    timings: Timings = field(default_factory=Timings)
    others: list[Generation] = field(default_factory=list)


class State(Enum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"


class Request:
    """One answer in the making.

    Attributes:
        arrival: requests are served in this order.
        tokens: the prompt, then what was generated.
        room: how many tokens the answer may have.
        computed: how many of ``tokens`` have keys and values in ``pages``.
        published: how many of ``pages`` can be found by others.
        claimed: how many tokens of the prompt have pages and are known to be computed here.
        proposals: tokens that may come next, to be checked in the next step.
        deadline: when it ends at the latest, by ``perf_counter``; None without a timeout.
        stale: its keys and values are of weights that have changed since.
        cancelled: nobody wants the answer any more.
        dropped: its handle is gone, and it will be cancelled.
        feed: where the rest of the prompt comes from; None where ``tokens`` holds all of it.
        starving: it waits to know how its prompt goes on, which so far is another's.
        expected: tokens that the prompt will have, about.
        in_flight: it is part of the step that is running.
        restoring: its next pages may be on disk.
        encoded: audio tokens of the window that the next chunk begins in.
        sampler: what chooses its tokens.
        lookup, draft: what guesses them, at most one of the two: earlier tokens, or a draft model.
    """

    sampler: Sampler
    lookup: PromptLookup | None

    def __init__(
        self,
        ids: list[int],
        audio: PromptAudio | None,
        params: GenerationParams,
        room: int,
        page_size: int,
    ) -> None:
        self.arrival, self.params, self.room = 0, params, room
        self.tokens, self.audio = list(ids), audio
        self.record = Generation(len(ids), 0 if audio is None else audio.num_tokens)
        self.digests = PageDigests(page_size, audio)
        self.state = State.WAITING
        self.pages: list[int] = []
        self.computed = self.published = self.claimed = 0
        self.after: tuple[Request, int] | None = None
        self.proposals: list[int] = []
        self.stale = self.cancelled = self.in_flight = self.dropped = False
        self.starving = False
        self.feed: Feed | None = None
        self.expected = len(ids)
        self.restoring = audio is not None
        self.error: BaseException | None = None
        self.draft: DraftSequence | None = None
        self.encoded: dict[int, Tensor] = {}
        self.submitted = perf_counter()
        self.deadline = None if params.timeout is None else self.submitted + params.timeout
        self.first_token: float | None = None
        self._table = np.zeros(0, np.int32)
        self._tabled = 0

    @property
    def decoding(self) -> bool:
        """Whether all but the last token went through the model."""
        return self.pending == 1 and self.feed is None

    @property
    def pending(self) -> int:
        """Tokens that are to go through the model before the next one can be chosen."""
        return len(self.tokens) - self.computed

    @property
    def left(self) -> int:
        """Tokens that the answer may still have."""
        return self.room - len(self.record.tokens)

    def grow(self) -> None:
        """Take over what its feed has read."""
        assert self.feed is not None
        self.tokens += self.feed.ids[len(self.tokens) :]
        self.record.prompt_tokens = len(self.tokens)
        self.record.audio_tokens = self.feed.audio.num_tokens
        self.record.timings.decode_audio = self.feed.seconds
        if self.feed.complete:
            self.feed, self.expected = None, len(self.tokens)

    def drop_pages(self) -> list[int]:
        """Hand over all pages: what they held must be computed again."""
        pages, self.pages = self.pages, []
        self.computed = self.published = self.claimed = self._tabled = 0
        self.proposals, self.after = [], None
        self.restoring = self.audio is not None
        self.encoded.clear()
        if self.draft is not None:
            self.draft.release()
        return pages

    def table(self) -> np.ndarray:
        """int32 ``[pages]``, to be read before the next page is added."""
        count = len(self.pages)
        if count > len(self._table):
            grown = np.zeros(max(16, 2 * count), np.int32)
            grown[: self._tabled] = self._table[: self._tabled]
            self._table = grown
        if count > self._tabled:
            self._table[self._tabled : count] = self.pages[self._tabled :]
            self._tabled = count
        return self._table[:count]
