"""One step of the engine: schedule, run, choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .look_ahead import ask_ahead, at_once
from .pages import PagePool
from .prompt_audio import Stretch
from .request import Request, State
from .runner import Chunk
from .sampler import Sampler, logprob_of, sample_rows
from .scheduler import Part
from .speculation import PromptLookup

if TYPE_CHECKING:
    from .draft import Draft
    from .engine import Engine


@dataclass(slots=True)
class Done:
    """Sums over all steps; see ``EngineStats``."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    restored_tokens: int = 0
    tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    model_seconds: float = 0.0


class Stepper:
    """Makes an engine's steps; one thread at a time.

    The lock is held while the books are kept, and not while the model runs. Where a step fails, so do its
    requests, and their pages are free.

    Attributes:
        new: a request came since the last step, so weights may have changed.
        done: what was done so far.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.new = False
        self.done = Done()
        self._pool: PagePool | None = None
        self._timed = False

    def prepare(self, request: Request) -> None:
        """Give a new request what chooses its tokens, or one whose prompt is known now."""
        config, params = self.engine.runner.net.config, request.params
        request.sampler = Sampler(params, request.tokens, config.text.vocab_size)
        request.lookup = None
        if params.speculate and self.engine.draft is not None:
            request.draft = self.engine.draft.start()
        elif params.speculate:
            request.lookup = PromptLookup(config.audio_token_id)
        self._timed = self._timed or params.timeout is not None

    @torch.inference_mode()
    def step(self) -> float:
        """Move every request on that can be; the lock is free.

        Returns for how many seconds none can: all wait for more of their prompts, or for their deadlines.
        """
        begun = perf_counter()
        scheduler, lock = self.engine.scheduler, self.engine.lock
        if self.new and not self._refresh():
            return 0.0
        if self.engine.draft is not None:
            self._guess(self.engine.draft)
        with lock:
            self._expire(begun)
            self._grow()
            if self.engine.runner.looks_ahead and not self.engine.feeds.active:
                ask_ahead(scheduler)
            parts, ahead = at_once(scheduler.schedule())
            if not parts and (scheduler.running or scheduler.waiting):
                if self.engine.feeds.active:  # somebody tells what comes next
                    return self._pause()
                self.fail_all(RuntimeError("nothing can run"))  # a bug, but nobody waits for ever
            for part in parts:
                part.request.in_flight = True
        if not parts:
            return 0.0
        clock = 0.0
        try:
            parts = self._restored(parts)
            parts, chunks = self._chunks(parts)
            clock = perf_counter()
            logits, said = self._run(parts, chunks, ahead)
            clock = perf_counter() - clock
            with lock:
                self._chosen(parts, logits, said, clock)
        except Exception as error:
            with lock:
                for part in parts:
                    self._fail(part.request, error)
        self.done.steps += 1
        self.done.model_seconds += clock
        self.done.step_seconds += perf_counter() - begun
        return 0.0

    def fail_all(self, error: BaseException) -> None:
        """End every request with ``error``; the lock is held."""
        scheduler = self.engine.scheduler
        for request in [*scheduler.waiting, *scheduler.running]:
            self._fail(request, error)

    def _refresh(self) -> bool:
        self.new, lock = False, self.engine.lock
        try:
            changed = self.engine.runner.refresh()
            drafted = self.engine.draft is not None and self.engine.draft.runner.refresh()
        except Exception as error:
            with lock:
                self.fail_all(error)
            return False
        if changed:
            with lock:
                self.engine.scheduler.forget()
                self.engine.audio_cache.forget()
                if (store := self.engine.page_store) is not None:
                    store.close()
                    self.engine.page_store = None
        if drafted:
            with lock:
                self.engine.forget_draft()
        return True

    def _guess(self, draft: Draft) -> None:
        """Have the draft model propose for all that decode."""
        lock = self.engine.lock
        with lock:
            running = self.engine.scheduler.running
            asked = [r for r in running if r.draft is not None and r.decoding]
            for request in asked:
                request.in_flight = True
        if not asked:
            return
        clock = perf_counter()
        try:
            draft.propose(asked, self.engine.eos)
        except Exception as error:
            with lock:
                for request in asked:
                    self._fail(request, error)
            return
        self.done.model_seconds += perf_counter() - clock
        with lock:
            for request in asked:
                self._landed(request)

    def _grow(self) -> None:
        """Add what came of prompts; those that cannot be read, or become too long, fail."""
        feeds = self.engine.feeds
        for feed in list(feeds.active):
            requests = [r for r in feed.requests if r.state is not State.DONE]
            try:
                if not feed.take():
                    continue
                self.engine.check_prompt(feed.ids)
            except BaseException as error:
                for request in requests:
                    self._fail(request, error)
                feeds.active.remove(feed)
                continue
            for request in requests:
                request.grow()
                if feed.complete:
                    request.room = self.engine.room(request.params, len(request.tokens))
                    self.prepare(request)
            if feed.complete:
                feeds.active.remove(feed)

    def _pause(self) -> float:
        """Seconds until the next deadline."""
        scheduler = self.engine.scheduler
        ends = [
            r.deadline for r in [*scheduler.waiting, *scheduler.running] if r.deadline is not None
        ]
        return max(1e-3, min(ends) - perf_counter()) if ends else math.inf

    def _expire(self, now: float) -> None:
        if not self._timed:
            return
        scheduler = self.engine.scheduler
        for request in [*scheduler.waiting, *scheduler.running]:
            if request.deadline is not None and request.deadline <= now:
                request.record.stopped = "timeout"
                request.record.timings.total = now - request.submitted
                scheduler.finish(request)

    def _restored(self, parts: list[Part]) -> list[Part]:
        """Parts that must be computed; where the next pages are on disk, a request goes on behind them."""
        store = self.engine.page_store
        if store is None:
            return parts
        scheduler, lock = self.engine.scheduler, self.engine.lock
        size, left = scheduler.page_size, []
        for part in parts:
            request = part.request
            if not request.restoring:
                left.append(part)
                continue
            try:
                digests = request.digests.upto(request.tokens, len(request.tokens) - 1)
                first = part.start // size
                # No more than a step computes: others decode meanwhile.
                digests = digests[first : first + max(1, scheduler.max_tokens // size)]
                pages = request.pages[first : first + len(digests)]
                found = store.restore(self._pages(), pages, digests, first)
            except Exception as error:
                with lock:
                    self._fail(request, error)
                continue
            request.restoring = 0 < found == len(digests)
            if found == 0:
                left.append(part)
                continue
            with lock:
                self._moved(request, part, found * size)
        return left

    def _moved(self, request: Request, part: Part, count: int) -> None:
        """``count`` tokens of ``request`` have their keys and values from disk."""
        request.in_flight = False
        if request.cancelled:
            request.record.stopped = "cancelled"
            self.engine.scheduler.finish(request)
            return
        self.engine.scheduler.computed(part, count)
        if not request.record.tokens:
            request.record.cached_tokens += count
            self.done.restored_tokens += count

    def _chunks(self, parts: list[Part]) -> tuple[list[Part], list[Chunk]]:
        """What goes into the model; a request whose audio cannot be encoded fails alone."""
        kept, chunks = [], []
        for part in parts:
            request, first, end = part.request, part.start, part.start + part.count
            try:
                heard = []
                if request.audio is not None:
                    for stretch in request.audio.stretches(first, end):
                        tokens = self._window(request, stretch)[stretch.rows]
                        heard.append((stretch.positions - first, tokens))
            except Exception as error:
                with self.engine.lock:
                    self._fail(request, error)
                continue
            ids = request.tokens[first:end]
            guessed = part.count - len(ids)
            ids += request.proposals[:guessed]
            logits = 1 + guessed if part.chooses else 0
            chunks.append(Chunk(ids, first, request.table(), logits, heard))
            kept.append(part)
        return kept, chunks

    def _window(self, request: Request, stretch: Stretch) -> Tensor:
        """Audio tokens of a whole window."""
        assert request.audio is not None
        cache, key = self.engine.audio_cache, request.audio.keys[stretch.window]
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
        audio, runner, cache = request.audio, self.engine.runner, self.engine.audio_cache
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
        timings.mel += (taken := perf_counter() - clock)
        together = runner.encode(features)
        timings.encode += perf_counter() - clock - taken
        self.done.model_seconds += perf_counter() - clock
        parts = together.split([window.num_tokens for window in windows])
        if len(parts) > 1:  # each of which is held, and dropped, alone
            parts = tuple(part.clone() for part in parts)
        for n, (key, part) in enumerate(zip(keys, parts, strict=True), first):
            cache.put(key, part)
            if n > first:
                request.encoded[n] = part
        return parts[0]

    def _run(
        self, parts: Sequence[Part], chunks: Sequence[Chunk], ahead: int
    ) -> tuple[Tensor | None, list[int] | None]:
        """Logits, or the tokens themselves where the device chose ``ahead`` of each."""
        if not chunks:
            return None, None
        if not ahead:
            return self.engine.runner.step(chunks, self._pages()), None
        rows = [part.request.sampler.rows(ahead) for part in parts]
        said = self.engine.runner.ahead(chunks, self._pages(), rows)
        for part, tokens in zip(parts, said, strict=True):
            part.request.proposals = tokens[:-1]
        return None, [token for tokens in said for token in tokens]

    def _pages(self) -> PagePool:
        if self._pool is None:
            scheduler = self.engine.scheduler
            size = scheduler.page_size
            self._pool = self.engine.runner.new_pool(scheduler.allocator.num_pages * size, size)
        return self._pool

    def _keep(self, request: Request) -> None:
        """Its prompt is computed: let later sessions have it."""
        store, prompt = self.engine.page_store, request.record.prompt_tokens
        if store is None or request.audio is None or request.stale:
            return
        store.keep(self._pages(), request.digests.upto(request.tokens, prompt))

    def _chosen(
        self,
        parts: Sequence[Part],
        logits: Tensor | None,
        said: list[int] | None,
        seconds: float,
    ) -> None:
        """Take each request's next tokens, those said already or from the logits, and move its books on."""
        ahead = said is not None
        tokens = _sampled(parts, logits) if said is None else said
        row = 0
        for part in parts:
            request = part.request
            if request.first_token is None and part.count > 1:  # a prompt: tokens ahead come later
                request.record.timings.prefill += seconds
            guesses, request.proposals = request.proposals, []
            first, row = row, row + (1 + len(guesses) if part.chooses else 0)
            if not self._landed(request):
                continue
            try:
                count = part.count - len(guesses)
                if part.chooses:
                    right = self._choose(request, logits, first, tokens, guesses)
                    count += right
                    if not ahead:
                        self.done.draft_tokens += len(guesses)
                        self.done.accepted_tokens += right
                begun = request.computed >= request.record.prompt_tokens
                self.engine.scheduler.computed(part, count)
                if (
                    not begun
                    and request.feed is None
                    and request.computed >= request.record.prompt_tokens
                ):
                    self._keep(request)
            except Exception as error:  # logits that are no numbers, say
                self._fail(request, error)
                continue
            if request.record.stopped:
                self.engine.scheduler.finish(request)
            elif request.lookup is not None and part.chooses:
                most = min(request.params.speculate, request.left - 1)
                request.proposals = request.lookup.propose(request.tokens, most)

    def _choose(
        self,
        request: Request,
        logits: Tensor | None,
        first: int,
        said: Sequence[int | None],
        guesses: list[int],
    ) -> int:
        """Tokens from the ``1 + len(guesses)`` rows of ``logits`` from ``first`` on; returns how many guesses
        were right. ``said``: what the sampler takes of each row, where that does not depend on what is said.

        A guess stands where the sampler would have said the same, so what is said does not depend on it.
        """
        for right, row in enumerate(range(first, first + len(guesses) + 1)):
            if (token := said[row]) is None:
                assert logits is not None
                token = request.sampler(logits[row])
            else:
                request.sampler.chosen(token)
            self._emit(request, token, logits, row)
            if request.record.stopped or right == len(guesses) or token != guesses[right]:
                break
        return right

    def _emit(self, request: Request, token: int, logits: Tensor | None, row: int) -> None:
        record, now = request.record, perf_counter()
        if request.first_token is None:
            request.first_token = now
            record.timings.first_token = now - request.submitted
            self.done.prompt_tokens += record.prompt_tokens
            self.done.cached_tokens += record.cached_tokens
        if token in self.engine.eos:
            record.stopped = "end"
        else:
            if request.params.logprobs is not None:
                assert logits is not None
                record.logprobs.append(logprob_of(logits[row], token, request.params.logprobs))
            record.tokens.append(token)
            request.tokens.append(token)
            self.done.tokens += 1
            if request.left == 0:
                record.stopped = "length"
        self._measure(request, now)

    def _measure(self, request: Request, now: float) -> None:
        record, timings = request.record, request.record.timings
        assert request.first_token is not None
        timings.generate, timings.total = now - request.first_token, now - request.submitted
        steps = len(record.tokens) - (0 if record.stopped == "end" else 1)
        if steps <= 0 or timings.generate <= 0:
            return
        timings.tokens_per_second = steps / timings.generate
        runner = self.engine.runner
        context = record.prompt_tokens + len(record.tokens) / 2
        read = runner.bytes_per_token + runner.cache_bytes(1) * context
        timings.gigabytes_per_second = read * timings.tokens_per_second / 1e9

    def _fail(self, request: Request, error: BaseException) -> None:
        if request.state is State.DONE:
            return
        request.in_flight = False
        request.error = error
        self.engine.scheduler.finish(request)

    def _landed(self, request: Request) -> bool:
        """What it was in flight for is over; whether somebody still wants it."""
        request.in_flight = False
        if request.cancelled:
            request.record.stopped = "cancelled"
            self.engine.scheduler.finish(request)
        return not request.cancelled


def _sampled(parts: Sequence[Part], logits: Tensor | None) -> list[int | None]:
    """What plain samplers take of their rows of ``logits``, at once; None for the rows of others."""
    if logits is None:
        return []
    said: list[int | None] = [None] * len(logits)
    places: list[int] = []
    rows: list[list[float]] = []
    first = 0
    for request in (part.request for part in parts if part.chooses):
        count = 1 + len(request.proposals)
        if request.sampler.plain:
            places += range(first, first + count)
            rows += request.sampler.rows(count)
        first += count
    if places:
        own = logits if len(places) == len(logits) else logits[places]
        for place, token in zip(places, sample_rows(own, rows), strict=True):
            said[place] = token
    return said
