"""One step of the engine: schedule, run, choose."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from traceback import clear_frames
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .choosing import Chooser, sampled
from .feed import STALLED
from .hearing import Listener
from .look_ahead import ask_ahead, at_once
from .pace import Pace
from .pages import PagePool
from .request import Request, State
from .runner import Chunk
from .sampler import Sampler
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

    The lock is held while the books are kept, and not while the model runs or tokens are chosen. Where a step
    of several fails, each is made alone, the largest first; where one of a single request does, so does that,
    and its pages are free.

    Attributes:
        new: a request came since the last step, so weights may have changed.
        done: what was done so far.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.new = False
        self.done = Done()
        self._listener, self._chooser = Listener(engine, self.done), Chooser(engine, self.done)
        self._pool: PagePool | None = None
        runner = engine.runner
        self._pace = Pace(runner.device.type, runner.bytes_per_token)
        self._timed = False
        self._apart: list[Request] = []

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
        if self.engine.draft is not None and not self._apart:
            self._guess(self.engine.draft)
        with lock:
            self._expire(begun)
            self._grow()
            if self.engine.runner.looks_ahead and not self.engine.feeds.active:
                ask_ahead(scheduler)
            talking = any(r.decoding for r in scheduler.running)
            parts, ahead = at_once(scheduler.schedule(self._pace.limit(talking)))
            if not parts and (scheduler.running or scheduler.waiting):
                if self.engine.feeds.active:  # somebody tells what comes next
                    return self._pause()
                self.fail_all(RuntimeError("nothing can run"))  # a bug, but nobody waits for ever
            parts = self._alone(parts)
            for part in parts:
                part.request.in_flight = True
        if not parts:
            return 0.0
        clock = 0.0
        try:
            parts = self._restored(parts)
            parts, chunks = self._chunks(parts)
            clock = perf_counter()
            logits, said = self._run(
                parts, chunks, ahead
            )  # with the tokens there, a device is done
            clock = perf_counter() - clock
            self._pace.took(sum(p.count for p in parts if p.request.pending > 1), clock)
            for part in parts:
                if part.request.first_token is None and part.count > 1:
                    part.request.record.timings.prefill += clock
            counts = self._chosen(parts, said, logits)
            with lock:
                for part, count in zip(parts, counts, strict=True):
                    self._settle(part, count)
        except Exception as error:
            with lock:
                self._failed(parts, error)
        self.done.steps += 1
        self.done.model_seconds += clock
        self.done.step_seconds += perf_counter() - begun
        return 0.0

    def fail_all(self, error: BaseException) -> None:
        """End every request with ``error``; the lock is held."""
        scheduler = self.engine.scheduler
        self._fail_each([*scheduler.waiting, *scheduler.running], error)

    def _failed(self, parts: Sequence[Part], error: Exception) -> None:
        """A step failed with ``error``: what it holds is let go, and who is to blame is found out."""
        clear_frames(error.__traceback__)
        if len(parts) == 1:
            self._fail(parts[0].request, error)
            return
        self._apart = []
        for part in sorted(parts, key=lambda p: -p.count):
            part.request.proposals = []
            if self._landed(part.request):
                self._apart.append(part.request)

    def _alone(self, parts: list[Part]) -> list[Part]:
        """The part whose turn it is to be made alone, where a step failed; else all."""
        while self._apart:
            request = self._apart.pop(0)
            if found := [p for p in parts if p.request is request]:
                return found
        return parts

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
                self._fail_each(asked, error)
            return
        self.done.model_seconds += perf_counter() - clock
        with lock:
            for request in asked:
                self._landed(request)

    def _grow(self) -> None:
        """Add what came of prompts; those that cannot be read, or become too long, fail."""
        feeds = self.engine.feeds
        feeds.prune()  # of those whose requests failed or are late
        feeds.tend()
        for feed in list(feeds.active):
            requests = [r for r in feed.requests if r.state is not State.DONE]
            try:
                if not feed.take():
                    continue
                self.engine.check_prompt(feed.ids)
            except BaseException as error:
                self._fail_each(requests, error)
                feeds.prune()
                continue
            for request in requests:
                request.grow()
                if feed.complete:
                    request.room = self.engine.room(request.params, len(request.tokens))
                    self.prepare(request)
            if feed.complete:
                feeds.active.remove(feed)

    def _pause(self) -> float:
        """Seconds until the next deadline, or until a source may be found to stall."""
        scheduler = self.engine.scheduler
        ends = [
            r.deadline for r in [*scheduler.waiting, *scheduler.running] if r.deadline is not None
        ]
        pause = max(1e-3, min(ends) - perf_counter()) if ends else math.inf
        return min(pause, STALLED / 2) if self.engine.feeds.crowded else pause

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
        if not self._landed(request):
            return
        self.engine.scheduler.computed(part, count)
        if not request.record.tokens:
            request.record.cached_tokens += count
            self.done.restored_tokens += count

    def _chunks(self, parts: list[Part]) -> tuple[list[Part], list[Chunk]]:
        """What goes into the model; a request whose audio cannot be encoded fails alone."""
        kept, chunks = [], []
        for part in parts:
            try:
                chunks.append(self._listener.chunk(part))
                kept.append(part)
            except Exception as error:
                with self.engine.lock:
                    self._fail(part.request, error)
        return kept, chunks

    def _run(
        self, parts: Sequence[Part], chunks: Sequence[Chunk], ahead: int
    ) -> tuple[Tensor | None, Sequence[int | None]]:
        """Logits, and what samplers take of each row of them; no logits where the device chose ``ahead``
        tokens of each.
        """
        if not chunks:
            return None, []
        if not ahead:
            logits = self.engine.runner.step(chunks, self._pages())
            return logits, sampled(parts, logits)
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
        self, parts: Sequence[Part], said: Sequence[int | None], logits: Tensor | None
    ) -> list[int | Exception]:
        """How many tokens of each part stay, its answer's next ones taken; or what that failed with."""
        found: list[int | Exception] = []
        first = 0
        for part in parts:
            rows = 1 + len(part.request.proposals) if part.chooses else 0
            try:
                wanted = not part.request.cancelled
                found.append(self._chooser.choose(part, first, said, logits) if wanted else 0)
            except Exception as error:  # logits that are no numbers, say
                found.append(error)
            first += rows
        return found

    def _settle(self, part: Part, count: int | Exception) -> None:
        """Move the books of a request on, or end it."""
        request, scheduler = part.request, self.engine.scheduler
        if not self._landed(request):
            return
        try:
            if isinstance(count, Exception):
                raise count
            begun = request.computed >= request.record.prompt_tokens
            scheduler.computed(part, count)
            ends = not begun and request.computed >= request.record.prompt_tokens
            if ends and request.feed is None:
                self._keep(request)
        except Exception as error:
            self._fail(request, error)
            return
        if request.record.stopped:
            scheduler.finish(request)

    def _fail_each(self, requests: Sequence[Request], error: BaseException) -> None:
        """An exception is raised by one thread: each request has its own."""
        for request in requests:
            self._fail(request, error if len(requests) == 1 else _own(error))

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
            request.record.stopped = request.record.stopped or "cancelled"
            self.engine.scheduler.finish(request)
        return not request.cancelled


def _own(error: BaseException) -> BaseException:
    """A copy of ``error`` that comes from it."""
    try:
        own = copy.copy(error)
    except Exception:  # it is made of more than its arguments
        return error
    if type(own) is not type(error):
        return error
    own.__cause__ = error
    return own
