"""Greedy answers to many questions at once, by the engine's model over the engine's pages, without penalties.

Questions about the same recordings share what their prompts begin with: it is encoded and prefilled once, and
each answer goes on from a copy of its last page. New questions join the batch as others are answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from afnext.audio.windows import AudioWindow
from afnext.chat import ChatTemplate, Message, Tokenizer, build_prompt
from afnext.chat.files import read_json
from afnext.chat.variants import detect_variant
from afnext.engine.packed import PackedModel
from afnext.engine.pages import PagePool
from afnext.engine.runner import PREFILL_CHUNK, WINDOWS_AT_ONCE
from afnext.model import AudioBatch, AudioLanguageModel

PAGE = 32
ROWS = 96  # answers at once, about
POOL_BYTES = 1 << 30  # of keys and values, unless one recording's questions take more


@dataclass(frozen=True, slots=True)
class Request:
    """A conversation that waits for its answer.

    Attributes:
        sounds: what ``windows`` of the listener knows the recordings by; they go with the first text.
        texts: of the user and the assistant in turn, the last one the user's.
        longest: tokens of the answer, at most.
    """

    sounds: tuple[str, ...]
    texts: tuple[str, ...]
    longest: int = 256


@dataclass(eq=False)
class _Trunk:
    """What some prompts begin with, in the cache."""

    pages: list[int]
    length: int
    open: int = 0  # answers that are not complete


@dataclass(eq=False)
class _Branch:
    """An answer in progress: which request's, and where it lies."""

    request: int
    trunk: _Trunk
    own: list[int]  # pages
    length: int
    left: int
    token: int = -1
    tokens: list[int] = field(default_factory=list)

    @property
    def pages(self) -> list[int]:
        return self.trunk.pages[: self.trunk.length // PAGE] + self.own


class Listener:
    """A model folder that answers questions in batches, on the CPU.

    Args:
        folder: of the model.
        windows: a recording's windows by its name.
        dtype, quantization: as ``afnext.load`` takes them; by default the weights are as the folder has them.
    """

    def __init__(
        self,
        folder: str | Path,
        windows: Callable[[str], Sequence[AudioWindow]],
        dtype: torch.dtype | None = None,
        quantization: str | None = None,
    ) -> None:
        folder = Path(folder)
        self.net = AudioLanguageModel.from_pretrained(folder, dtype=dtype)
        self.tokenizer = Tokenizer.from_folder(folder)
        variant = detect_variant(folder, read_json(folder / "config.json"))
        self.template = ChatTemplate.from_folder(
            folder,
            default_system=variant.system_prompt,
            variables=self.tokenizer.special_tokens,
        )
        self.windows = windows
        self._packed = PackedModel(self.net, quantization)
        self._table = self.net.language_model.model.embed_tokens.weight
        self.dtype = self._table.dtype

    @torch.inference_mode()
    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """Each request's number with its answer, as they are complete; thinking included.

        Raises:
            AudioError, ChatError: a recording or a text cannot be used.
        """
        groups: dict[tuple[str, ...], list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(request.sounds, []).append(number)
        waiting = deque(groups.values())
        prompt = self._prompts(requests, waiting[0]) if waiting else None
        pool: PagePool | None = None
        active: list[_Branch] = []
        while prompt or active:
            while prompt and len(active) < ROWS:
                needed = prompt.pages(requests)
                if pool is None or (pool.num_pages < needed and not active):
                    pool = self._pool(needed)
                if pool.free_pages < needed:
                    break
                active += self._begin(prompt, requests, pool)
                waiting.popleft()
                prompt = self._prompts(requests, waiting[0]) if waiting else None
            assert pool is not None
            done = [b for b in active if b.token in self.tokenizer.eos_ids or b.left == 0]
            for branch in done:
                yield branch.request, self.tokenizer.decode(branch.tokens)
                self._release(branch, pool)
            if done:
                active = [b for b in active if b not in done]
            if active:
                self._step(active, pool)

    def _prompts(self, requests: Sequence[Request], numbers: list[int]) -> _Prompts:
        sounds = requests[numbers[0]].sounds
        heard = [list(self.windows(name)) for name in sounds]
        built = [
            build_prompt(_messages(requests[n]), heard, self.tokenizer, self.template)
            for n in numbers
        ]
        ids = [b.ids for b in built]
        shared = min(_alike(ids), min(map(len, ids)) - 1)
        return _Prompts(numbers, ids, shared, list(built[0].windows))

    def _pool(self, pages: int) -> PagePool:
        text = self.net.config.text
        page = 2 * PAGE * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
        pages = max(pages, POOL_BYTES // (page * self.dtype.itemsize))
        return PagePool(text, pages, PAGE, self.dtype, torch.device("cpu"))

    def _begin(
        self, prompt: _Prompts, requests: Sequence[Request], pool: PagePool
    ) -> list[_Branch]:
        """Prefill what is shared, then the rest of each prompt; every branch has its first token then."""
        shared = prompt.shared
        trunk = _Trunk(pool.take(pool.pages_for(shared)), shared, len(prompt.numbers))
        audio = AudioBatch.collate([prompt.windows], max_windows=WINDOWS_AT_ONCE).to(
            "cpu", self.dtype
        )
        ids = torch.tensor([prompt.ids[0][:shared]])
        hidden = self.net.embed(ids, audio, encode=self._packed.encode)[0]
        table, done = _int32([trunk.pages]), 0
        for chunk in hidden.contiguous().split(PREFILL_CHUNK):
            ends = _int32([0, len(chunk)])
            self._packed.batch(chunk, pool, table, ends, _int32([done]))
            done += len(chunk)
        branches = []
        for number, own in zip(prompt.numbers, prompt.ids, strict=True):
            longest = requests[number].longest
            pages = pool.take(pool.pages_for(shared % PAGE + len(own) - shared + longest))
            branches.append(_Branch(number, trunk, pages, shared, longest))
        if shared % PAGE:
            copies = [b.own[0] for b in branches]
            for cache in (*pool.keys, *pool.values):
                cache[copies] = cache[trunk.pages[-1]].clone()
        self._run(branches, [own[shared:] for own in prompt.ids], pool)
        return branches

    def _step(self, branches: Sequence[_Branch], pool: PagePool) -> None:
        for branch in branches:
            branch.tokens.append(branch.token)
            branch.left -= 1
        going = [b for b in branches if b.left]
        if going:
            self._run(going, [[b.token] for b in going], pool)

    def _run(
        self, branches: Sequence[_Branch], ids: Sequence[Sequence[int]], pool: PagePool
    ) -> None:
        """Append tokens to each branch and choose its next one."""
        widest = max(len(b.pages) for b in branches)
        table = _int32([b.pages + [0] * (widest - len(b.pages)) for b in branches])
        starts = _int32([b.length for b in branches])
        ends = _int32([0, *(len(i) for i in ids)]).cumsum(0, dtype=torch.int32)
        hidden = self._table[torch.tensor([id for own in ids for id in own])]
        hidden = self._packed.batch(hidden, pool, table, ends, starts)
        chosen = self._packed.logits(hidden[ends[1:].long() - 1]).argmax(-1).tolist()
        for branch, own, token in zip(branches, ids, chosen, strict=True):
            branch.length += len(own)
            branch.token = token

    def _release(self, branch: _Branch, pool: PagePool) -> None:
        pool.give_back(branch.own)
        branch.trunk.open -= 1
        if branch.trunk.open == 0:
            pool.give_back(branch.trunk.pages)


@dataclass(frozen=True, slots=True)
class _Prompts:
    """The prompts of some requests with the same recordings: ``shared`` ids are the same in all."""

    numbers: list[int]
    ids: list[list[int]]
    shared: int
    windows: list[AudioWindow]

    def pages(self, requests: Sequence[Request]) -> int:
        """How many they and their answers take, at most."""
        total = -(-self.shared // PAGE)
        for number, own in zip(self.numbers, self.ids, strict=True):
            tokens = self.shared % PAGE + len(own) - self.shared + requests[number].longest
            total += -(-tokens // PAGE)
        return total


def _alike(rows: Sequence[Sequence[int]]) -> int:
    """How many items all rows begin with."""
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*rows, strict=False)))


def _messages(request: Request) -> list[Message]:
    roles = ("user", "assistant")
    first, *others = request.texts
    opening = Message("user", first, list(request.sounds))
    return [opening, *(Message(roles[i % 2], text) for i, text in enumerate(others, 1))]


def _int32(values: Sequence[int] | Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)
