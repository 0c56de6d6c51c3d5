"""A smaller model that guesses what the larger one will say (Leviathan et al., 2023).

It hears the same audio by its own encoder, and draws with a copy of the request's own sampler: where both
models find the same tokens likely, they draw the same. The larger one says what it would have said anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from threading import RLock

import numpy as np
from torch import Tensor

from afnext.model import AudioLanguageModel

from .allocator import PageAllocator
from .audio_cache import AudioCache
from .packed import stored_quantization
from .pages import PagePool
from .prompt_audio import PromptAudio
from .request import Request
from .runner import Chunk, Runner

AUDIO_CACHE_BYTES = 64 << 20


class DraftSequence:
    """What the draft model holds of one request.

    Attributes:
        pages: of the draft's pool.
        computed: how many tokens have keys and values there, guessed ones included.
        published: how many of ``pages`` can be found by others.
        base, said: how many tokens there were at the last guess, and what was guessed behind them.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self.pages: list[int] = []
        self.computed = self.published = self.base = 0
        self.said: list[int] = []

    def release(self) -> None:
        """Give the pages back; what they held is computed again where it is needed."""
        self._draft.take_back(self.pages)
        self.pages, self.said = [], []
        self.computed = self.published = self.base = 0

    def settle(self, tokens: Sequence[int]) -> None:
        """Forget what was guessed wrongly; of ``tokens`` at least the last one is to be read."""
        right = 0
        while (
            right < len(self.said)
            and self.base + right < len(tokens)
            and self.said[right] == tokens[self.base + right]
        ):
            right += 1
        if self.said:
            self.computed = min(self.computed, self.base + right)
        self.computed = min(self.computed, len(tokens) - 1)
        self.said = []


class _Guess:
    """One request's guesses in the making: ``ids`` are to be read before the next one."""

    def __init__(self, request: Request, sequence: DraftSequence, count: int) -> None:
        self.request, self.sequence, self.count = request, sequence, count
        self.ids = request.tokens[sequence.computed :]
        self.table = np.array(sequence.pages, np.int32)
        self.said: list[int] = []
        self.ended = False
        self._sampler = None if request.sampler.greedy else request.sampler.fork()

    def add(self, logits: Tensor, likeliest: int, eos: Collection[int]) -> None:
        """Guess the next token from ``logits [vocab]``; the end of the answer is not a guess."""
        try:
            token = likeliest if self._sampler is None else self._sampler(logits)
        except RuntimeError:
            # No numbers, or a grammar at its limit: a guess may fail, an answer not.
            self.ended = True
            return
        if token not in eos:
            self.said.append(token)
        self.ended = token in eos or len(self.said) == self.count
        self.ids = [token]


class Draft:
    """The draft model of an engine, with a cache of its own.

    Args:
        net: with the vocabulary of ``model``.
        model: what it guesses for.
        quantization, kv_cache_dtype: see ``Runner``; integers that ``net`` holds stay as they are.

    Raises:
        ValueError: the two do not have their tokens in common.
    """

    def __init__(
        self,
        net: AudioLanguageModel,
        model: AudioLanguageModel,
        quantization: str | None,
        kv_cache_dtype: str | None,
    ) -> None:
        ours, theirs = net.config, model.config
        if ours.text.vocab_size != theirs.text.vocab_size or (
            ours.audio_token_id != theirs.audio_token_id
        ):
            raise ValueError(
                f"draft: has {ours.text.vocab_size} tokens and hears at {ours.audio_token_id}, the model "
                f"{theirs.text.vocab_size} and {theirs.audio_token_id}: they must share a tokenizer"
            )
        self.max_context = ours.text.max_position_embeddings
        self.runner = Runner(net, stored_quantization(net) or quantization, None, kv_cache_dtype)
        self._audio = AudioCache(AUDIO_CACHE_BYTES)
        self._pool: PagePool | None = None

    def allot(self, pages: int, page_size: int, max_tokens: int, lock: RLock) -> None:
        """Room for its keys and values, how many tokens it may read at once, and the lock of its engine."""
        self.allocator, self._lock = PageAllocator(pages), lock
        self._page_size, self._max_tokens = page_size, max_tokens

    def start(self) -> DraftSequence:
        """Of a new request; takes no page yet."""
        return DraftSequence(self)

    def take_back(self, pages: Sequence[int]) -> None:
        """See ``DraftSequence.release``."""
        if pages:
            with self._lock:
                self.allocator.release(pages)

    def forget(self) -> None:
        """Drop what is kept for later requests."""
        with self._lock:
            self.allocator.forget()
        self._audio.clear()

    def forked(self) -> None:
        """In a child: no thread of the parent's is there to release what it held."""
        self._audio.forked()

    def propose(self, requests: Sequence[Request], eos: Collection[int]) -> None:
        """Fill ``proposals`` of requests whose last token is all that is new.

        Nothing is proposed where there is no room for it, and where more of a prompt is to be read than a
        step may: a part of it is, then.
        """
        left, guesses = self._max_tokens, []
        for request in requests:
            request.proposals = []
            count = min(request.params.speculate, request.left - 1)
            count = min(count, self.max_context - len(request.tokens))
            if count < 1:
                continue
            sequence = self._settled(request)
            if sequence is None or not self._grow(sequence, len(request.tokens) + count):
                continue
            behind = len(request.tokens) - 1 - sequence.computed
            if behind > self._page_size:  # alone, so that others of the same prompt may share it
                read = min(behind, left)
                if read:
                    self._read(request, sequence, sequence.computed + read)
                left -= read
            if len(request.tokens) - sequence.computed <= 1 + self._page_size:
                guesses.append(_Guess(request, sequence, count))
        while running := [g for g in guesses if not g.ended]:
            chunks = [self._chunk(g) for g in running]
            logits = self.runner.step(chunks, self._pages())
            likeliest = logits.argmax(-1).tolist()
            for guess, row, token in zip(running, logits, likeliest, strict=True):
                guess.sequence.computed += len(guess.ids)
                guess.add(row, token, eos)
        for guess in guesses:
            guess.sequence.base, guess.sequence.said = len(guess.request.tokens), guess.said
            guess.request.proposals = list(guess.said)

    def _settled(self, request: Request) -> DraftSequence | None:
        """The request's sequence, as far as it is true, with what others have read already."""
        sequence, tokens, size = request.draft, request.tokens, self._page_size
        if sequence is None:
            return None
        sequence.settle(tokens)
        with self._lock:
            if not sequence.pages:
                sequence.pages = self.allocator.share(request.digests.upto(tokens, len(tokens) - 1))
                sequence.published = len(sequence.pages)
                sequence.computed = sequence.published * size
        self._publish(request, sequence)
        return sequence

    def _publish(self, request: Request, sequence: DraftSequence) -> None:
        digests = request.digests.upto(request.tokens, sequence.computed)
        with self._lock:
            for page in range(sequence.published, len(digests)):
                self.allocator.publish(sequence.pages[page], digests[page])
        sequence.published = max(sequence.published, len(digests))

    def _grow(self, sequence: DraftSequence, tokens: int) -> bool:
        missing = -(-tokens // self._page_size) - len(sequence.pages)
        with self._lock:
            if missing > self.allocator.available:
                return False
            sequence.pages += self.allocator.take(max(0, missing))
        return True

    def _read(self, request: Request, sequence: DraftSequence, end: int) -> None:
        ids = request.tokens[sequence.computed : end]
        table = np.array(sequence.pages, np.int32)
        heard = self._heard(request.audio, sequence.computed, end)
        self.runner.step([Chunk(ids, sequence.computed, table, 0, heard)], self._pages())
        sequence.computed = end
        self._publish(request, sequence)

    def _chunk(self, guess: _Guess) -> Chunk:
        start = guess.sequence.computed
        heard = self._heard(guess.request.audio, start, start + len(guess.ids))
        return Chunk(guess.ids, start, guess.table, 1, heard)

    def _heard(
        self, audio: PromptAudio | None, first: int, end: int
    ) -> list[tuple[np.ndarray, Tensor]]:
        heard: list[tuple[np.ndarray, Tensor]] = []
        if audio is None:
            return heard
        for stretch in audio.stretches(first, end):
            key = audio.keys[stretch.window]
            tokens = self._audio.get(key)
            if tokens is None:
                tokens = self.runner.encode(self.runner.mel([audio.windows[stretch.window]]))
                self._audio.put(key, tokens)
            heard.append((stretch.positions - first, tokens[stretch.rows]))
        return heard

    def _pages(self) -> PagePool:
        if self._pool is None:
            pages = self.allocator.num_pages
            self._pool = self.runner.new_pool(pages * self._page_size, self._page_size)
        return self._pool
