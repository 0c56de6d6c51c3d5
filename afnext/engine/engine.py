"""Generates for many requests at once: continuous batching over a paged cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from operator import index
from reprlib import repr as shortened
from threading import RLock

import torch

from afnext.audio.windows import AudioWindow
from afnext.model import AudioLanguageModel

from .allocator import PageAllocator
from .audio_cache import AudioCache
from .disk_cache import DiskCache
from .draft import Draft
from .driver import Driver
from .feed import Feed, Feeds, More
from .handle import Handle
from .memory import default_cache_bytes
from .packed_cache import PackedCache
from .page_store import PageStore
from .params import GenerationParams, require_whole
from .prompt_audio import PromptAudio
from .request import Generation, Request, State
from .runner import PREFILL_CHUNK, Runner
from .scheduler import Scheduler
from .stepper import Stepper

PAGE_SIZE = 32
MAX_RUNNING = 64
AUDIO_CACHE_BYTES = 512 << 20
AHEAD_STEPS = 2  # whose prompts are read before they are needed
PATIENCE = 0.1  # seconds that who cancels waits for the books
CONTEXTS = 32  # of the longest kind; more are never needed at once


@dataclass(frozen=True, slots=True)
class Prompt:
    """One of several prompts; the fields are the arguments of ``Engine.submit``."""

    ids: Sequence[int]
    windows: Sequence[AudioWindow] = ()
    params: GenerationParams | None = None
    more: More | None = None
    expected: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine holds and has done.

    Attributes:
        running, waiting: requests.
        pages, page_bytes: of the cache of keys and values, and the bytes of one of them.
        free_pages: held by nobody, kept ones included.
        kept_pages: of these, pages that later prompts may share.
        evicted_pages: kept ones that had to go.
        prompt_tokens, cached_tokens: of all requests that began, and of these tokens that were not
            computed because their pages were there.
        audio_hits, audio_misses: windows found encoded, or not.
        audio_bytes: held by encoded windows.
        audio_evictions: of these, windows that had to go.
        restored_tokens: of ``cached_tokens``, those whose keys and values were read from disk.
        disk_hits, disk_misses: encoded windows and pages found on disk, or not; a prompt stops at the first
            page that is not there.
        disk_bytes, disk_evictions: held on disk as far as is known, and files that this process had to drop.
        preemptions: requests that had to give their pages back.
        tokens: generated.
        draft_tokens, accepted_tokens: guessed and checked, and of these right.
        steps: made.
        step_seconds, model_seconds: in steps, and of these inside the model.
    """

    running: int
    waiting: int
    pages: int
    page_bytes: int
    free_pages: int
    kept_pages: int
    evicted_pages: int
    prompt_tokens: int
    cached_tokens: int
    audio_hits: int
    audio_misses: int
    audio_bytes: int
    audio_evictions: int
    restored_tokens: int
    disk_hits: int
    disk_misses: int
    disk_bytes: int
    disk_evictions: int
    preemptions: int
    tokens: int
    draft_tokens: int
    accepted_tokens: int
    steps: int
    step_seconds: float
    model_seconds: float


class Engine:
    """Answers prompts for one model, as many at once as its cache holds.

    A thread of its own makes steps while somebody waits for a token, and each step serves everybody; it ends
    with the engine. Safe to use from several threads and from asyncio at once. A forked child answers too,
    but for requests that its parent began. ``torch.profiler`` sees steps with ``profile_all_threads``.

    Args:
        net: the model, in eval mode. Where its weights change between requests, what was kept of the old
            ones is dropped.
        eos: token ids that end an answer.
        max_context: most tokens of prompt and answer together, from 2; by default, and at most, the model's.
        quantization, cache: how the weights are stored; see ``Runner``.
        kv_cache_dtype: how keys and values are stored; see ``Runner``.
        draft: a smaller model with the same tokenizer, in eval mode: requests that ``speculate`` are
            guessed by it, not from what their tokens repeat. What is said stays the same.
        cache_bytes: of keys and values, the draft's and prompts kept for others included; by default
            4 GiB, or one context where that is more, but at most half of the free memory, and taken as it is
            used; on CUDA 40 % of the free memory, taken with the first step. Never more than 32 contexts.
        audio_cache_bytes: of encoded audio that may be asked about again.
        disk_cache: where encoded audio, and keys and values of prompts with audio, are kept for later runs;
            of these very weights.
        max_step_tokens: of one step; prompts beyond that are read in several.
        max_running: requests in one step.

    Raises:
        ValueError: a limit that is no whole number or leaves room for nothing, a ``max_context`` above the
            model's, or a draft with other tokens.
    """

    def __init__(
        self,
        net: AudioLanguageModel,
        eos: Sequence[int],
        *,
        max_context: int | None = None,
        quantization: str | None = None,
        cache: PackedCache | None = None,
        kv_cache_dtype: str | None = None,
        draft: AudioLanguageModel | None = None,
        cache_bytes: int | None = None,
        audio_cache_bytes: int = AUDIO_CACHE_BYTES,
        disk_cache: DiskCache | None = None,
        max_step_tokens: int = PREFILL_CHUNK,
        max_running: int = MAX_RUNNING,
    ) -> None:
        most = net.config.text.max_position_embeddings
        context = most if max_context is None else max_context
        require_whole("max_context", context, 2, most)
        require_whole("max_step_tokens", max_step_tokens, 1)
        require_whole("max_running", max_running, 1)
        require_whole("audio_cache_bytes", audio_cache_bytes, 0)
        if cache_bytes is not None:
            require_whole("cache_bytes", cache_bytes, 1)
        if max_running > max_step_tokens:
            raise ValueError(
                f"max_running: must be at most max_step_tokens, {max_step_tokens}, got {max_running}"
            )
        self.runner = Runner(net, quantization, cache, kv_cache_dtype)
        self.eos = frozenset(eos)
        self.lock = RLock()
        self.draft = None
        if draft is not None:
            self.draft = Draft(draft, net, quantization, kv_cache_dtype)
        self.page_bytes = page = self.runner.cache_bytes(PAGE_SIZE)
        if self.draft is not None:  # as many pages as the model has
            page += self.draft.runner.cache_bytes(PAGE_SIZE)
        needed = -(-context // PAGE_SIZE)
        if cache_bytes is None:
            cache_bytes = default_cache_bytes(self.runner.device, needed * page)
        pages = min(cache_bytes // page, CONTEXTS * needed)
        if pages < 1:
            raise ValueError(f"cache_bytes: {cache_bytes} is less than a page, {page} bytes")
        self.max_running = max_running
        self.max_context = min(context, pages * PAGE_SIZE)
        if self.max_context < context:
            self.taker = "the cache (cache_bytes, kv_cache_dtype) has room for"
        else:
            self.taker = "the model takes" if context == most else "max_context allows"
        self.scheduler = Scheduler(PageAllocator(pages), PAGE_SIZE, max_step_tokens, max_running)
        if self.draft is not None:
            self.draft.allot(pages, PAGE_SIZE, max_step_tokens, self.lock)
        self._driver = Driver(self)
        self.feeds = Feeds(self.lock, self._driver.tell, AHEAD_STEPS * max_step_tokens)
        self.disk_cache = disk_cache
        self.page_store = (
            PageStore(disk_cache, self.scheduler.allocator, self.lock) if disk_cache else None
        )
        keep = None if self.page_store is None else self.page_store.keep_window
        self.audio_cache = AudioCache(audio_cache_bytes, disk_cache, keep)
        self._stepper = Stepper(self)
        self._arrivals = 0
        self._dropped: deque[Request] = deque()

    def submit(
        self,
        ids: Sequence[int],
        windows: Sequence[AudioWindow] = (),
        params: GenerationParams | None = None,
        more: More | None = None,
        expected: int = 0,
    ) -> Handle:
        """Start a request; it is worked on while somebody waits for a token, of this or another one.

        Args:
            ids: the prompt, with one ``<sound>`` id for each audio token.
            windows: the prompt's audio, in the order of its placeholders.
            params: how to choose and when to stop. With ``n`` above 1 the handle's ``samples`` are the
                handles of all answers.
            more: what comes behind ``ids``, a stretch of ids and the windows of its placeholders at a time.
                Another thread takes it while the model is at what came before, and stops, and closes it
                where it can be closed, when nobody wants the answer any more. What it raises the request
                fails with, and so it does where ``ids`` would have been refused.
            expected: tokens of the whole prompt, about, so that it begins when there are pages for them.

        Raises:
            ValueError: an empty prompt, ids that are no whole numbers or outside of the vocabulary, a prompt
                with its answer too long for the model or the cache, or placeholders that do not match the
                audio; ``params`` with strings to stop at, which the engine does not see, or with a grammar
                that was not compiled.
        """
        params = params or GenerationParams()
        _require_ids_alone(params)
        config = self.runner.net.config
        try:
            ids = list(map(index, ids))
        except TypeError:
            raise ValueError(
                f"ids: must be a list of whole numbers, got {shortened(ids)}"
            ) from None
        self.check_prompt(ids)
        audio = PromptAudio(ids, windows, config.audio_token_id)
        feed = None if more is None else Feed(more, ids, audio)
        requests = []
        for number in range(params.n):
            own = params
            if params.seed is not None and number:
                own = replace(params, seed=params.seed + number)
            heard = audio if audio.windows or feed is not None else None
            request = Request(ids, heard, own, self.room(own, len(ids)), PAGE_SIZE)
            request.feed = feed
            request.expected = min(max(len(ids), expected), self.max_context)
            self._stepper.prepare(request)
            request.digests.upto(request.tokens, len(ids))  # now, and not under the lock
            requests.append(request)
        with self.lock:
            self.reap()
            if feed is not None:
                feed.requests = requests
                self.feeds.add(feed)
            for request in requests:
                self._arrivals += 1
                request.arrival = self._arrivals
                self.scheduler.add(request)
            self._stepper.new = True
            self._driver.threads = torch.get_num_threads()
        self._driver.tell()
        first, *others = requests
        first.record.others = [r.record for r in others]
        return Handle(self, first, [Handle(self, r) for r in others])

    def generate(self, prompts: Iterable[Prompt]) -> list[Generation]:
        """The answers to several prompts, in their order.

        Raises:
            ValueError: as ``submit``; nothing was done then.
            Exception: what one of the requests failed with; the others are cancelled then.
        """
        prompts = list(prompts)
        handles: list[Handle] = []
        try:
            for prompt in prompts:
                handles += self.submit(
                    prompt.ids, prompt.windows, prompt.params, prompt.more, prompt.expected
                ).samples
            for handle in handles:
                handle.result()
        finally:
            for handle in handles:
                handle.cancel()
        firsts, at = [], 0
        for prompt in prompts:
            firsts.append(handles[at].record)
            at += 1 if prompt.params is None else prompt.params.n
        return firsts

    def wait(self, handles: Sequence[Handle], patience: float = 0.0) -> list[Handle]:
        """Wait until at least one of ``handles`` has something new; returns those that have.

        ``patience``: seconds that what is new may wait for more of it, where nothing but tokens is made
        meanwhile and it is no answer's first one; ``WHOLE`` waits for the end of one of the answers.
        """
        if handles:
            self._driver.wait(handles, patience)
        return [h for h in handles if h.ready]

    async def wait_async(self, handles: Sequence[Handle], patience: float = 0.0) -> list[Handle]:
        """As ``wait``, for a task: no thread is taken."""
        if handles:
            await self._driver.wait_async(handles, patience)
        return [h for h in handles if h.ready]

    def check_prompt(self, ids: Sequence[int]) -> None:
        """Raise ``ValueError`` for a prompt that cannot be answered."""
        vocabulary = self.runner.net.config.text.vocab_size
        if not ids:
            raise ValueError("ids: the prompt is empty")
        if len(ids) >= self.max_context:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, {self.taker} {self.max_context} with its "
                "answer: shorten the text or the audio"
            )
        if min(ids) < 0 or max(ids) >= vocabulary:
            raise ValueError(f"ids: must be from 0 to {vocabulary - 1}")

    def room(self, params: GenerationParams, prompt: int) -> int:
        """How many tokens the answer to a prompt of so many may have."""
        return min(params.max_tokens, self.max_context - prompt)

    def cancel(self, request: Request) -> None:
        """See ``Handle.cancel``; of a request that is done nothing changes.

        A generator that is collected cancels too, on whichever thread and wherever that is. Where the books
        are open (the lock is that thread's), or another thread waits for what that one holds, it is left to
        who takes the lock next.
        """
        self.drop(request)
        # Not by ``blocking``: who cancels while a step keeps its books finds the pages free.
        if not self.lock._is_owned() and self.lock.acquire(timeout=PATIENCE):  # type: ignore[attr-defined]
            try:
                self.reap()
            finally:
                self.lock.release()

    def drop(self, request: Request) -> None:
        """Cancel when there is time: a finalizer may run at any moment, within this engine too."""
        request.dropped = True
        self._dropped.append(request)
        self._driver.wake()

    def stats(self) -> EngineStats:
        """What it holds now and has done so far."""
        with self.lock:
            self.reap()
            allocator, audio = self.scheduler.allocator, self.audio_cache
            return EngineStats(
                running=len(self.scheduler.running),
                waiting=len(self.scheduler.waiting),
                pages=allocator.num_pages,
                page_bytes=self.page_bytes,
                free_pages=allocator.available,
                kept_pages=allocator.kept,
                evicted_pages=allocator.evictions,
                audio_hits=audio.hits,
                audio_misses=audio.misses,
                audio_bytes=audio.nbytes,
                audio_evictions=audio.evictions,
                disk_hits=self.disk_cache.hits if self.disk_cache else 0,
                disk_misses=self.disk_cache.misses if self.disk_cache else 0,
                disk_bytes=self.disk_cache.nbytes if self.disk_cache else 0,
                disk_evictions=self.disk_cache.evictions if self.disk_cache else 0,
                preemptions=self.scheduler.preemptions,
                **asdict(self._stepper.done),
            )

    def flush(self) -> None:
        """Wait until all that is kept for later sessions is on disk; the end of the process waits too."""
        if (store := self.page_store) is not None:
            store.flush()

    def clear_caches(self) -> None:
        """Drop encoded audio and kept pages from memory; running requests go on."""
        with self.lock:
            self.scheduler.allocator.forget()
            self.audio_cache.clear()
            if self.draft is not None:
                self.draft.forget()

    def forget_draft(self) -> None:
        """The draft's weights changed: what it holds of any request is of no use."""
        assert self.draft is not None
        self.draft.forget()
        for request in self.scheduler.running:
            if request.draft is not None:
                request.draft.release()

    def step(self) -> float:
        """Move every request on that can be; returns for how many seconds nothing can. The driver's."""
        return self._stepper.step()

    def reap(self) -> None:
        """Cancel what was dropped; the lock is held."""
        while self._dropped:
            self._cancel(self._dropped.popleft())

    def fail_all(self, error: BaseException) -> None:
        """Nothing that was begun can go on."""
        with self.lock:
            self._stepper.fail_all(error)

    def forked(self) -> None:
        """In a child: what the parent's threads were at is given up; the lock is held."""
        self._driver.forked()
        self.audio_cache.forked()
        if self.draft is not None:
            self.draft.forked()
        self.feeds.forked()
        if self.page_store is not None:
            self.page_store.forked()
        self._stepper.fail_all(RuntimeError("the process was forked: ask again in the child"))

    def _cancel(self, request: Request) -> None:
        if request.state is State.DONE or request.cancelled:
            return
        request.cancelled = True
        if not request.in_flight:
            request.record.stopped = "cancelled"
            self.scheduler.finish(request)
        self.feeds.prune()


def _require_ids_alone(params: GenerationParams) -> None:
    """What needs texts is ``Assistant``'s part, and must not be ignored here."""
    if params.stop:
        raise ValueError("stop: the engine knows tokens, not texts; Assistant ends answers there")
    if params.grammar is not None and params.constraint is None:
        raise ValueError(f"{params.grammar[0]}: give the constraint that it compiles to")
