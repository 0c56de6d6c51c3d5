"""Who takes part in the next step, with how many tokens, on which pages."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

from .allocator import PageAllocator
from .request import Request, State


def _arrival(request: Request) -> int:
    return request.arrival


@dataclass(frozen=True, slots=True)
class Part:
    """A request's share of a step: ``count`` of its tokens, behind the ``start`` that are computed.

    Tokens past ``request.tokens`` are its proposals. ``chooses``: it gets a new token by this step.
    """

    request: Request
    start: int
    count: int
    chooses: bool


class Scheduler:
    """Fills steps with tokens, in a budget.

    - One token (and proposals) of everyone that decodes comes first: nobody's stream halts for a prompt.
    - What is left goes to prompts: half to the oldest, the rest to the shortest of the others first, so
      that a question need not wait for half an hour of audio, nor the other way round.
    - A request begins when its whole prompt has pages, in order of arrival; one whose prompt begins as
      another's that is being read waits for that, and shares its pages.
    - A prompt whose end is not known yet takes part with as many tokens as if it were, or not at all: in
      what steps it is read does not depend on when its parts came. Only where another waits for its pages
      it does not wait in turn.
    - When pages run out, the latest arrived gives its own back and is computed again later, its answer so
      far included.

    Pure bookkeeping: it touches no tensor.

    Args:
        allocator: of the pages.
        page_size: tokens of a page.
        max_tokens: of a step.
        max_running: requests of a step, at most ``max_tokens``.

    Attributes:
        waiting, running: in order of arrival.
        preemptions: pages taken back from a request, so far.
    """

    def __init__(
        self, allocator: PageAllocator, page_size: int, max_tokens: int, max_running: int
    ) -> None:
        self.allocator, self.page_size = allocator, page_size
        self.max_tokens, self.max_running = max_tokens, max_running
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.preemptions = 0
        self._reading: dict[bytes, Request] = {}

    @property
    def reading(self) -> bool:
        """Whether the next step may be more than a token for each: prompts are read, or wait for that."""
        return bool(self.waiting) or not all(r.decoding for r in self.running)

    def add(self, request: Request) -> None:
        """Let a request wait for its turn; it must fit into the pool alone."""
        insort(self.waiting, request, key=_arrival)

    def schedule(self, most: int | None = None) -> list[Part]:
        """The next step's parts; empty only where there is nothing to do, or prompts are still to come.

        ``most``: tokens of prompts, at most; by default as many as fit.
        """
        self._extend_grown()
        parts = self._decoding()
        left = self.max_tokens - sum(p.count for p in parts)
        self._admit_waiting(left)
        left = left if most is None else min(left, most)
        return parts + self._prefilling(left, {p.request.arrival for p in parts})

    def computed(self, part: Part, count: int) -> None:
        """After a step: ``count`` of the part's tokens are right and stay."""
        request = part.request
        request.computed = part.start + count
        full = request.computed // self.page_size
        if request.stale or full <= request.published:
            return
        digests = request.digests.upto(request.tokens, request.computed)
        for page in range(request.published, full):
            self.allocator.publish(request.pages[page], digests[page])
            self._not_reading(request, digests[page])
        request.published = full

    def finish(self, request: Request) -> None:
        """Take a request out, wherever it is, with its pages."""
        if request.state is State.DONE:
            return
        (self.running if request.state is State.RUNNING else self.waiting).remove(request)
        self._give_back(request)
        request.state = State.DONE

    def preempt(self, request: Request) -> None:
        """Take a running request's pages; it waits for its next turn."""
        self.running.remove(request)
        self._give_back(request)
        request.state = State.WAITING
        self.preemptions += 1
        self.add(request)

    def forget(self) -> None:
        """The weights changed: what pages hold is of no use to requests that begin now."""
        self.allocator.forget()
        self._reading.clear()
        for request in self.running:
            request.stale = True

    def _extend_grown(self) -> None:
        """Pages for what came of prompts, in case that is more than was expected."""
        for request in list(self.running):
            if request.claimed == request.record.prompt_tokens:
                continue
            if request.state is not State.RUNNING:
                continue  # preempted for an older one
            if self._grow(request, request.pending):
                self._claim(request)

    def _claim(self, request: Request) -> None:
        """Let others know what of its prompt is about to be computed."""
        request.claimed = request.record.prompt_tokens
        if not request.stale:
            for digest in self._shareable(request)[request.published :]:
                self._reading.setdefault(digest, request)

    def _decoding(self) -> list[Part]:
        decoding = [r for r in self.running if r.decoding]
        spare = self.max_tokens - len(decoding)
        parts = []
        for request in decoding:
            if request.state is not State.RUNNING:
                continue  # preempted for an older one
            guessed = min(len(request.proposals), spare, request.left - 1)
            if guessed and not self._has_room(request, 1 + guessed):
                guessed = 0  # a guess is not worth anybody's pages
            del request.proposals[guessed:]
            if self._grow(request, 1 + guessed):
                spare -= guessed
                parts.append(Part(request, request.computed, 1 + guessed, True))
        return parts

    def _has_room(self, request: Request, tokens: int) -> bool:
        return self._missing(request, request.computed + tokens) <= self.allocator.available

    def _grow(self, request: Request, tokens: int) -> bool:
        """Pages for so many more tokens, from later requests if need be; False where it lost its own."""
        missing = self._missing(request, request.computed + tokens)
        while missing > self.allocator.available:
            victim = self.running[-1]
            self.preempt(victim)
            if victim is request:
                return False
        request.pages += self.allocator.take(missing)
        return True

    def _missing(self, request: Request, tokens: int) -> int:
        return max(0, -(-tokens // self.page_size) - len(request.pages))

    def _admit_waiting(self, left: int) -> None:
        if len(self.running) >= self.max_running:
            return
        for request in list(self.waiting):
            begun = sum(r.pending > 1 for r in self.running)
            if len(self.running) >= self.max_running or begun >= left:
                return
            if self._deferred(request):
                continue
            if not self._admit(request):
                return  # nobody overtakes by being smaller

    def _deferred(self, request: Request) -> bool:
        """Whether another request is about to compute what this one would."""
        if request.after is not None:
            other, pages = request.after
            if other.state is State.RUNNING and not other.stale and other.published < pages:
                return True
            request.after = None
        request.starving = request.feed is not None and self._repeats(self._shareable(request))
        if request.starving:
            return True
        if not self._reading:
            return False
        digests = self._shareable(request)
        reader = next((self._reading[d] for d in digests if d in self._reading), None)
        if reader is None:
            return False
        theirs = self._shareable(reader)
        alike = 0
        while alike < min(len(digests), len(theirs)) and digests[alike] == theirs[alike]:
            alike += 1
        if alike <= reader.published:
            return False
        request.after = (reader, alike)
        return True

    def _repeats(self, known: list[bytes]) -> bool:
        """Whether all that is known of a prompt is computed, or about to be: it can wait for its rest."""
        if not known:
            return False
        if self.allocator.find(known[-1]) is not None:
            return True
        for other in self.running:
            if other.stale:
                continue
            theirs = self._shareable(other)
            both = min(len(known), len(theirs))
            behind = both == len(known) or other.feed is not None
            if both and behind and theirs[both - 1] == known[both - 1]:
                return True
        return False

    def _admit(self, request: Request) -> bool:
        shared = self.allocator.share(self._shareable(request))
        request.pages = shared
        request.computed = len(shared) * self.page_size
        # A page for each that runs already, lest the next step takes these back.
        wanted = max(len(request.tokens), request.expected)
        missing = self._missing(request, wanted)
        reserve = len(self.running)
        if missing + reserve > self.allocator.available:
            self.allocator.release(request.drop_pages())
            return False
        request.pages = shared + self.allocator.take(missing)
        request.published = len(shared)
        if not request.record.tokens:
            request.record.cached_tokens = request.computed
        request.stale = False
        request.state = State.RUNNING
        self.waiting.remove(request)
        insort(self.running, request, key=_arrival)
        self._claim(request)
        return True

    def _shareable(self, request: Request) -> list[bytes]:
        """Digests of the pages it may take over: not its last token, whose logits are wanted."""
        return request.digests.upto(request.tokens, len(request.tokens) - 1)

    def _prefilling(self, left: int, taken: set[int]) -> list[Part]:
        prompts = [r for r in self.running if r.arrival not in taken]
        if not prompts or left <= 0:
            return []
        oldest, others = prompts[0], sorted(prompts[1:], key=lambda r: r.pending)
        wanted = sum(r.pending for r in others)
        counts = [(oldest, max(-(-left // 2), left - wanted))]
        counts += [(r, left) for r in others]
        parts = []
        awaited = {r.after[0].arrival for r in self.waiting if r.after and r.feed is None}
        for request, most in counts:
            # Of a prompt that may end here the last token is kept back: its logits are wanted then.
            count = min(request.pending - (request.feed is not None), most, left)
            growing = request.feed is not None and request.arrival not in awaited
            if count <= 0 or (growing and count < min(most, left)):
                continue
            left -= count
            chooses = count == request.pending and request.feed is None
            parts.append(Part(request, request.computed, count, chooses))
        return parts

    def _give_back(self, request: Request) -> None:
        if self._reading:
            for digest in self._shareable(request)[request.published :]:
                self._not_reading(request, digest)
        self.allocator.release(request.drop_pages())

    def _not_reading(self, request: Request, digest: bytes) -> None:
        if self._reading.get(digest) is request:
            del self._reading[digest]
