"""Scheduler, allocator and digests against a world that remembers what every slot of every page holds."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from afnext.audio import AudioWindow
from afnext.engine import GenerationParams
from afnext.engine.allocator import PageAllocator
from afnext.engine.prefix import PageDigests
from afnext.engine.prompt_audio import PromptAudio, window_key
from afnext.engine.request import Request, State
from afnext.engine.scheduler import Part, Scheduler

SLOTS, SOUND = 4, 99


def clip(seed: int, tokens: int) -> AudioWindow:
    samples = np.full(tokens * 640, seed, np.float32)
    return AudioWindow(samples, 0, len(samples))


CLIPS = [clip(1, 3), clip(2, 3), clip(3, 9)]


def request(ids: list[int], room: int = 4, windows: list[AudioWindow] | None = None) -> Request:
    audio = PromptAudio(ids, windows, SOUND) if windows else None
    made = Request(ids, audio, GenerationParams(max_tokens=room), room, SLOTS)
    request.count = getattr(request, "count", 0) + 1  # type: ignore[attr-defined]
    made.arrival = request.count  # type: ignore[attr-defined]
    return made


class Rest:
    """What is still to come of a prompt, in the place of a ``Feed``."""

    def __init__(self, one: Request, ids: list[int], windows: list[AudioWindow]) -> None:
        self.one, self.ids, self.windows = one, ids, windows

    def come(self, count: int) -> None:
        """The next ``count`` ids, a window of audio in one piece."""
        while self.ids and count > 0:
            windows, taken = [], 1
            if self.ids[0] == SOUND:
                windows = [self.windows.pop(0)]
                taken = windows[0].num_tokens
            ids, self.ids = self.ids[:taken], self.ids[taken:]
            assert self.one.audio is not None
            self.one.audio.extend(ids, windows, [window_key(w) for w in windows])
            self.one.tokens += ids
            count -= taken
        self.one.record.prompt_tokens = len(self.one.tokens)
        if not self.ids:
            self.one.feed = None


def growing(ids: list[int], known: int, room: int, windows: list[AudioWindow]) -> Request:
    """A request of which so many ids are known, or a few more, where they are within a window."""
    made = request([], room)
    made.audio = PromptAudio([], [], SOUND)
    made.digests = PageDigests(SLOTS, made.audio)
    rest = Rest(made, list(ids), list(windows))
    made.feed = cast(Any, rest)
    rest.come(known)
    return made


class World(RuleBasedStateMachine):
    """Keys and values of a token are told by all that is said and heard up to it, and by the weights."""

    @initialize(pages=st.integers(4, 24), budget=st.integers(1, 40), running=st.integers(1, 6))
    def begin(self, pages: int, budget: int, running: int) -> None:
        self.capacity, self.budget, self.most = pages * SLOTS, budget, min(running, budget)
        self.allocator = PageAllocator(pages)
        self.scheduler = Scheduler(self.allocator, SLOTS, budget, self.most)
        self.slots: dict[tuple[int, int], tuple[object, int]] = {}
        self.heard: dict[int, list[object]] = {}
        self.weights = 0
        self.began: dict[int, int] = {}
        self.open: list[Request] = []

    @rule(
        start=st.sampled_from([[], [1] * 5, [1] * 9, [2] * 6]),
        clips=st.lists(st.sampled_from(range(len(CLIPS))), max_size=2),
        end=st.lists(st.integers(0, 1), min_size=1, max_size=6),
        room=st.integers(1, 12),
        known=st.integers(1, 40),
        told=st.booleans(),
    )
    def ask(
        self, start: list[int], clips: list[int], end: list[int], room: int, known: int, told: bool
    ) -> None:
        """With ``known`` of its tokens at first; the others come as ``grow`` has it."""
        ids, meant = list(start), list(start)
        for index in clips:
            count = CLIPS[index].num_tokens
            ids += [SOUND] * count + [7]
            meant += [*((index, row) for row in range(count)), 7]
        ids += end
        meant += end
        room = min(room, self.capacity - len(ids))
        if room < 1:
            return
        if known < len(ids):
            asked = growing(ids, known, room, [CLIPS[i] for i in clips])
            asked.expected = len(ids) if told else known
        else:
            asked = request(ids, room, [CLIPS[i] for i in clips])
        self.heard[asked.arrival] = meant
        self.scheduler.add(asked)
        self.open.append(asked)

    @rule(which=st.integers(0, 50), count=st.integers(1, 20))
    def grow(self, which: int, count: int) -> None:
        if unread := [r for r in self.open if r.feed is not None]:
            cast(Rest, unread[which % len(unread)].feed).come(count)

    @rule(which=st.integers(0, 50))
    def ask_again(self, which: int) -> None:
        """The very same prompt."""
        if self.open:
            one = self.open[which % len(self.open)]
            if one.feed is not None:
                return
            count = one.record.prompt_tokens
            windows = one.audio.windows if one.audio else None
            asked = request(one.tokens[:count], one.room, windows)
            self.heard[asked.arrival] = self.heard[one.arrival][:count]
            self.scheduler.add(asked)
            self.open.append(asked)

    @rule(token=st.integers(0, 3), right=st.integers(0, 3), guesses=st.integers(0, 3))
    def step(self, token: int, right: int, guesses: int) -> None:
        speaking = [r for r in self.scheduler.running if r.decoding]
        for one in speaking:
            one.proposals = [5] * min(guesses, one.left - 1)
        before = self.scheduler.preemptions
        parts = self.scheduler.schedule()
        assert not parts or self.open
        # Where the model has nothing to do, all wait for what is still to come.
        assert parts or all(r.feed is not None for r in self.scheduler.running)
        assert parts or not self.open or any(r.feed is not None for r in self.open)
        assert sum(p.count for p in parts) <= self.budget
        assert all(p.count > 0 for p in parts)
        served = {p.request.arrival for p in parts}
        assert len(served) == len(parts) <= self.most
        for one in speaking:
            assert one.arrival in served or self.scheduler.preemptions > before
        for part in parts:
            self.run(part, token, right)

    def run(self, part: Part, token: int, right: int) -> None:
        one = part.request
        assert one.state is State.RUNNING
        assert part.start == one.computed
        assert one.feed is None or not part.chooses
        begun = self.began.setdefault(one.arrival, self.weights)
        guessed = part.start + part.count - len(one.tokens) if part.chooses else 0
        line = [*self.heard[one.arrival], *one.proposals[:guessed]]
        for at in range(part.start):  # what the new tokens see
            assert self.slots[one.pages[at // SLOTS], at % SLOTS][0] == tuple(line[: at + 1])
            assert self.slots[one.pages[at // SLOTS], at % SLOTS][1] >= begun
        for at in range(part.start, part.start + part.count):
            place = one.pages[at // SLOTS], at % SLOTS
            self.slots[place] = tuple(line[: at + 1]), self.weights
        kept = part.count
        if part.chooses:
            accepted = min(right, guessed)
            said = [*one.proposals[:accepted], token]
            kept = part.count - guessed + accepted
            one.tokens += said
            one.record.tokens += said
            self.heard[one.arrival] += said
            one.proposals = []
        self.scheduler.computed(part, kept)
        if one.left == 0:
            self.scheduler.finish(one)
            self.open.remove(one)

    @rule(which=st.integers(0, 50))
    def cancel(self, which: int) -> None:
        if self.open:
            one = self.open.pop(which % len(self.open))
            self.scheduler.finish(one)
            self.scheduler.finish(one)  # once more does nothing

    @rule(which=st.integers(0, 50))
    def preempt(self, which: int) -> None:
        if self.scheduler.running:
            one = self.scheduler.running[which % len(self.scheduler.running)]
            self.scheduler.preempt(one)
            self.began.pop(one.arrival, None)

    @rule()
    def change_weights(self) -> None:
        self.weights += 1
        self.scheduler.forget()

    @invariant()
    def every_page_is_held_by_those_who_list_it(self) -> None:
        if not hasattr(self, "open"):
            return
        held = Counter(p for r in self.scheduler.running for p in r.pages)
        assert len(held) + self.allocator.available == self.allocator.num_pages
        assert {p: n for p, n in enumerate(self.allocator._holders) if n} == held
        assert not any(r.pages for r in self.scheduler.waiting)
        for one in self.scheduler.waiting:
            self.began.pop(one.arrival, None)
        for (
            one
        ) in self.scheduler.running:  # one may wait for its first part with pages that it shares
            self.began.setdefault(one.arrival, self.weights)
        everyone = [*self.scheduler.running, *self.scheduler.waiting]
        assert sorted(r.arrival for r in everyone) == sorted(r.arrival for r in self.open)
        for queue in (self.scheduler.running, self.scheduler.waiting):
            assert [r.arrival for r in queue] == sorted(r.arrival for r in queue)

    def teardown(self) -> None:
        """Everybody gets an answer, however it began, and all pages come back."""
        if not hasattr(self, "open"):
            return
        while unread := [r for r in self.open if r.feed is not None]:
            cast(Rest, unread[0].feed).come(100)
        for _ in range(100 * (1 + len(self.open))):
            if not self.open:
                break
            self.step(token=1, right=1, guesses=1)
        assert not self.open
        assert self.allocator.available == self.allocator.num_pages


World.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestWorld = World.TestCase


def scheduler(pages: int = 100, tokens: int = 32, running: int = 8) -> Scheduler:
    return Scheduler(PageAllocator(pages), SLOTS, tokens, running)


def shares(parts: list[Part]) -> dict[int, int]:
    return {p.request.arrival: p.count for p in parts}


def test_speaking_comes_first_then_half_for_the_oldest_prompt_then_short_ones() -> None:
    books = scheduler()
    speaking, long, middle, short = (request([i] * n) for i, n in enumerate((1, 90, 20, 6)))
    books.add(speaking)
    books.computed(books.schedule()[0], 1)
    speaking.tokens.append(3)
    for one in (long, middle, short):
        books.add(one)
    assert shares(books.schedule()) == {
        speaking.arrival: 1, long.arrival: 16, short.arrival: 6, middle.arrival: 9
    }  # fmt: skip


def test_nobody_overtakes_by_being_smaller() -> None:
    books = scheduler(pages=6)
    first, large, small = request([1] * 12), request([2] * 20), request([3])
    for one in (first, large, small):
        books.add(one)
    assert [p.request for p in books.schedule()] == [first]
    books.finish(first)
    assert [p.request for p in books.schedule()] == [large]


def test_the_latest_gives_way() -> None:
    books = scheduler(pages=5, tokens=8)
    early, late = request([1] * 7), request([2] * 4)
    for one in (early, late):
        books.add(one)
    for _ in range(8):
        for part in books.schedule():
            books.computed(part, part.count)
            if part.chooses:
                part.request.tokens.append(3)
        if books.preemptions:
            break
    assert books.running == [early]
    assert books.waiting == [late]
    assert late.pages == []


def test_a_prompt_that_begins_alike_waits_for_the_one_being_read() -> None:
    books = scheduler(tokens=16)
    first, second, other = request([1] * 32), request([1] * 29 + [2]), request([5] * 4)
    for one in (first, second, other):
        books.add(one)
    parts = books.schedule()
    assert shares(parts) == {first.arrival: 12, other.arrival: 4}
    for part in parts:
        books.computed(part, part.count)
    books.finish(other)
    assert shares(books.schedule()) == {first.arrival: 16}
    books.computed(Part(first, 12, 16, False), 16)
    assert shares(books.schedule()) == {first.arrival: 4, second.arrival: 2}
    assert second.pages[:7] == first.pages[:7]
    books.finish(first)
    assert books.allocator.available == 92


@pytest.mark.parametrize("end", ["cancelled", "preempted"])
def test_who_waits_for_somebody_does_not_wait_for_ever(end: str) -> None:
    books = scheduler(tokens=16)
    first, second = request([1] * 32), request([1] * 32)
    books.add(first)
    books.add(second)
    assert shares(books.schedule()) == {first.arrival: 16}
    (books.finish if end == "cancelled" else books.preempt)(first)
    assert len(books.schedule()) == 1
