"""The engine: eight requests beside one, a recording asked about again, its overhead; others at 7B."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import MusicFlamingoForConditionalGeneration

import afnext
from afnext.audio.windows import AudioWindow, cut_windows
from afnext.engine import Engine, GenerationParams, Handle
from afnext.engine.engine import PAGE_SIZE
from afnext.engine.pages import Sequence
from afnext.hub import find_model
from afnext.model import AudioLanguageModel
from afnext.ops import runtime

from .case import Case
from .machine import largest_cache
from .models import llama_cpp
from .models.released import AUDIO, TEXT, geometry, random_model
from .models.transformers_music_flamingo import generate
from .models.transformers_qwen2 import Qwen2, qwen2

LAYERS, VOCABULARY = 4, 32_000
CONTEXT = 800  # tokens of a question about half a minute
TOGETHER = 8
STEPS = 32
FORMATS = (None, "int8", "int4")
QUESTION = "What sounds do you hear, and when?"
THEIRS, ONE_BY_ONE = "transformers bfloat16", "one request after another"
# Times that others should take, over ours.
Targets = Mapping[str | None, float]
FIRST_TOKEN: Targets = {None: 1.5, "int8": 2.2}
TOKEN: Targets = {None: 1.6, "int8": 3.0, "int4": 4.5}
TOKENS: Targets = {None: 5.0}
AGAIN = {600.0: 20.0}
_processes = ExitStack()


def noise(seconds: float) -> np.ndarray:
    """float32 samples at 16 kHz."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal(int(seconds * 16_000)) * 0.05).astype(np.float32)


class Speaking:
    """``count`` requests of an engine, each behind ``CONTEXT`` tokens; a call is one token of each."""

    def __init__(self, engine: Engine, count: int) -> None:
        self.engine, self.count = engine, count
        self.handles: list[Handle] = []

    @property
    def bytes(self) -> int:
        """A call reads weights once, keys and values of each; 0 where the caches hold half of it."""
        pages = -(-CONTEXT // PAGE_SIZE) * self.count
        read = self.engine.runner.bytes_per_token + pages * self.engine.page_bytes
        return read if read > 2 * largest_cache() else 0

    def __call__(self) -> list[int]:
        if any(h.finished for h in self.handles) or not self.handles:
            self.close()
            params = GenerationParams(max_tokens=2000)
            ids = [list(range(i, i + CONTEXT)) for i in range(self.count)]
            self.handles = [self.engine.submit(row, (), params) for row in ids]
            for handle in self.handles:  # the prompts are read before the first token is timed
                next(handle)
            for handle in self.handles:
                handle.take()
        return [next(handle) for handle in self.handles]

    def close(self) -> None:
        for handle in self.handles:
            handle.cancel()
        self.handles = []


def times(call: Callable[[], object], count: int) -> None:
    for _ in range(count):
        call()


def _alone(engine: Engine) -> Callable[[], object]:
    """A decode step by the runner itself, behind ``CONTEXT`` tokens."""
    runner = engine.runner
    sequence = Sequence(runner.new_pool(CONTEXT + 1, PAGE_SIZE), CONTEXT + 1)
    for pages in (*sequence.pool.keys, *sequence.pool.values):
        pages.normal_()

    @torch.inference_mode()
    def step() -> int:
        sequence.length = CONTEXT
        return int(runner.decode(5, sequence).argmax())

    return step


def nano_engine() -> Engine:
    """nano in float32, which never ends an answer by itself."""
    net = AudioLanguageModel.from_pretrained(find_model("nano"), dtype=torch.float32)
    return Engine(net, [])


def nano() -> Iterator[Case]:
    """What needs no large model: batching, caches and overhead."""
    engine = nano_engine()
    eight, one = Speaking(engine, TOGETHER), Speaking(nano_engine(), 1)
    yield Case(
        f"nano, {STEPS} tokens for each of {TOGETHER} requests at once",
        label="afnext",
        ours=partial(times, eight, STEPS),
        peers={ONE_BY_ONE: partial(times, one, TOGETHER * STEPS)},
        bytes=STEPS * eight.bytes,
    )
    eight.close()
    yield Case(
        f"nano, {STEPS} decode steps through the engine",
        label="afnext",
        ours=partial(times, one, STEPS),
        peers={"the runner alone": partial(times, _alone(one.engine), STEPS)},
        bytes=STEPS * one.bytes,
    )
    one.close()
    for seconds in (60.0, 600.0):
        yield again(seconds)


def again(seconds: float) -> Case:
    """The first token of a second question, and of a first one."""
    model, samples = afnext.load("nano", dtype="float32"), noise(seconds)
    windows = list(cut_windows([samples]))
    ids = [1, *[model.net.config.audio_token_id] * sum(w.num_tokens for w in windows), 2, 3]

    def first(question: int) -> list[int]:
        params = GenerationParams(max_tokens=1)
        return model.engine.submit([*ids, question], windows, params).result().tokens

    def cold() -> list[int]:
        model.engine.clear_caches()
        return first(4)

    def check() -> None:
        expected = cold()
        model.engine.clear_caches()
        first(5)
        if first(4) != expected:
            raise AssertionError("the cached recording is answered otherwise")

    def warm() -> list[int]:
        if model.engine.stats().kept_pages == 0:
            first(5)
        return first(4)

    return Case(
        f"nano, first token about {seconds:g} s that were asked about before",
        label="afnext",
        ours=warm,
        peers={"for the first time": cold},
        targets={"for the first time": AGAIN[seconds]} if seconds in AGAIN else {},
        check=check,
        rounds=5,
        slow=seconds > 60,
    )


@cache
def _released() -> AudioLanguageModel:
    text = replace(TEXT, vocab_size=VOCABULARY, num_hidden_layers=LAYERS)
    return random_model(geometry(text, AUDIO))


@cache
def _transformers() -> MusicFlamingoForConditionalGeneration:
    """On the same weights, read from a folder that is gone afterwards."""
    with TemporaryDirectory() as folder:
        _released().save_pretrained(folder)
        model = MusicFlamingoForConditionalGeneration.from_pretrained(
            Path(folder), dtype=torch.bfloat16
        )
    return model.eval()


@cache
def _engine(quantization: str | None, use: int) -> Engine:
    """One for each use: what is asked of one engine shares its steps."""
    return Engine(_released(), [], quantization=quantization)


def _prompt() -> tuple[list[int], list[AudioWindow]]:
    windows = list(cut_windows([noise(30.0)]))
    sound = geometry(replace(TEXT, vocab_size=VOCABULARY)).audio_token_id
    return [1, 2, *[sound] * windows[0].num_tokens, *range(3, 40)], windows


def _first_token(quantization: str | None) -> object:
    engine, (ids, windows) = _engine(quantization, 1), _prompt()
    engine.clear_caches()
    return engine.submit(ids, windows, GenerationParams(max_tokens=1)).result().tokens


def _first_token_of_transformers() -> object:
    return generate(_transformers(), *_prompt(), 1)


@cache
def _speaking(quantization: str | None, count: int) -> Speaking:
    return Speaking(_engine(quantization, count), count)


@cache
def _step_of_transformers() -> Qwen2:
    text = _released().config.text
    shape = (1, text.num_key_value_heads, CONTEXT, text.head_dim)
    layers = range(text.num_hidden_layers)
    keys, values = ([torch.randn(shape, dtype=torch.bfloat16) for _ in layers] for _ in "kv")
    return Qwen2(qwen2(_released()), torch.tensor([40]), keys, values)


@cache
def _llama(quantization: str | None) -> llama_cpp.LlamaCpp:
    threads = runtime.num_threads()
    llama = llama_cpp.LlamaCpp(_released(), quantization, [40], CONTEXT, threads)
    return _processes.enter_context(llama)


def _of(target: Targets, quantization: str | None, peer: str) -> dict[str, float]:
    return {peer: target[quantization]} if quantization in target else {}


def released() -> Iterator[Case]:
    """One request of half a minute, and the tokens of one and of eight, in every format."""
    about = f"7B, {LAYERS} of 28 layers"
    for quantization in FORMATS:
        format = quantization or "bfloat16"
        yield Case(
            f"{about} and the whole encoder, first token about 30 s, {format}",
            label="afnext",
            ours=partial(_first_token, quantization),
            peers={THEIRS: _first_token_of_transformers},
            targets=_of(FIRST_TOKEN, quantization, THEIRS),
            rounds=3,
            slow=True,
        )
        peers: dict[str, Callable[[], object]] = {THEIRS: lambda: _step_of_transformers()()}
        if llama_cpp.installed():
            name = f"llama.cpp {llama_cpp.FORMATS[quantization]}"
            peers[name] = lambda q=quantization: _llama(q)()  # type: ignore[misc]
        yield Case(
            f"{about}, a token behind {CONTEXT}, {format}",
            label="afnext",
            ours=lambda q=quantization: _speaking(q, 1)(),  # type: ignore[misc]
            peers=peers,
            bytes=lambda q=quantization: _speaking(q, 1).bytes,  # type: ignore[misc]
            targets=_of(TOKEN, quantization, THEIRS),
            context=torch.inference_mode,
            slow=True,
        )
        yield Case(
            f"{about}, a token for each of {TOGETHER}, {format}",
            label="afnext",
            ours=lambda q=quantization: _speaking(q, TOGETHER)(),  # type: ignore[misc]
            peers={
                ONE_BY_ONE: lambda q=quantization: times(  # type: ignore[misc]
                    _speaking(q, 1), TOGETHER
                )
            },
            bytes=lambda q=quantization: _speaking(q, TOGETHER).bytes,  # type: ignore[misc]
            targets=_of(TOKENS, quantization, ONE_BY_ONE),
            slow=True,
        )
        _forget()
    _forget(everything=True)


def _forget(*, everything: bool = False) -> None:
    """Let go of one format's engine, and of all weights in the end."""
    _speaking.cache_clear()
    _engine.cache_clear()
    _llama.cache_clear()
    _processes.close()
    if everything:
        _step_of_transformers.cache_clear()
        _transformers.cache_clear()
        _released.cache_clear()


def cases() -> Iterator[Case]:
    """nano's, then those of the released geometry."""
    yield from nano()
    yield from released()
