"""What is asked of the engine on a GPU; imports afnext, whose compiled module must be there by then."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afnext.audio.windows import AudioWindow, cut_windows
from afnext.engine import Engine, GenerationParams, Handle, Prompt
from afnext.hub import find_model
from afnext.model import AudioBatch, AudioLanguageModel

from ..case import Case
from ..models.released import AUDIO, TEXT, geometry, random_model

FORMATS = (None, "int8", "int4", "fp8")
TOKENS = 64
TOGETHER = (8, 32)
SECONDS, LONG = 30.0, 1800.0
CACHE_BYTES = 4 << 30


def noise(seconds: float) -> np.ndarray:
    """float32 samples at 16 kHz."""
    rng = np.random.default_rng(0)
    return (rng.standard_normal(int(seconds * 16_000)) * 0.05).astype(np.float32)


class Bench:
    """One model, asked about half a minute, and once about half an hour.

    Args:
        rehearse: a layer of the model, on the CPU.
        folder: where the peer's weights may lie meanwhile.
    """

    def __init__(self, rehearse: bool, folder: Path) -> None:
        text, audio = TEXT, AUDIO
        if rehearse:
            text = replace(text, num_hidden_layers=1, vocab_size=4096)
            audio = replace(audio, num_hidden_layers=1)
        self.rehearse, self.folder = rehearse, folder
        self.device = torch.device("cpu" if rehearse else "cuda")
        self.net = random_model(geometry(text, audio), device=self.device)
        self.ids, self.windows = self.about(SECONDS)
        self.formats = FORMATS[:3] if rehearse else FORMATS

    def engine(self, quantization: str | None) -> Engine:
        """One that ends no answer by itself."""
        return Engine(self.net, [], quantization=quantization, cache_bytes=CACHE_BYTES)

    def about(self, seconds: float) -> tuple[list[int], list[AudioWindow]]:
        """A prompt about a recording of so many seconds, and its windows."""
        windows = list(cut_windows([noise(seconds)]))
        tokens = sum(window.num_tokens for window in windows)
        return [1, 2, *[self.net.config.audio_token_id] * tokens, *range(3, 40)], windows

    def answers(
        self, engine: Engine, count: int, requests: int = 1, seconds: float = SECONDS
    ) -> list[list[int]]:
        """Tokens of so many requests at once, nothing known of the recording."""

        engine.clear_caches()
        params = GenerationParams(max_tokens=count)
        ids, windows = self._asked(seconds)
        prompts = [Prompt([*ids, 100 + n], windows, params) for n in range(requests)]
        return [record.tokens for record in engine.generate(prompts)]

    def _asked(self, seconds: float) -> tuple[list[int], list[AudioWindow]]:
        if seconds == SECONDS:
            return self.ids, self.windows
        return self._long

    @cached_property
    def _long(self) -> tuple[list[int], list[AudioWindow]]:
        return self.about(4 * SECONDS if self.rehearse else LONG)

    def peer(self) -> Callable[[int, float], object] | None:
        """transformers' answer of so many tokens about so many seconds, where it has the model."""
        try:
            from transformers import MusicFlamingoForConditionalGeneration

            from ..models.transformers_music_flamingo import generate
        except ImportError as error:
            print(f"no transformers: {error}", flush=True)
            return None
        self.net.save_pretrained(self.folder)
        model: Any = MusicFlamingoForConditionalGeneration.from_pretrained(
            self.folder, dtype=torch.bfloat16
        )
        model = model.to(self.device).eval()

        def answer(count: int, seconds: float) -> object:
            ids, windows = self._asked(seconds)
            return generate(model, [*ids, 100], windows, count).cpu()

        return answer

    def cases(self) -> Iterator[Case]:
        """Each with what it needs; that of a format before goes first."""
        peer = self.peer()
        for quantization in self.formats:
            engine, format = self.engine(quantization), quantization or "bfloat16"
            if self.rehearse:
                from tests.engine.models import as_on_a_gpu

                as_on_a_gpu(engine)
            for count in (1, 1 + TOKENS):
                what = f"and {TOKENS} more" if count > 1 else ""
                yield Case(
                    f"7B, the first token about 30 s {what}, {format}".replace(" ,", ","),
                    label="afnext",
                    ours=partial(self.answers, engine, count),
                    peers={"transformers bfloat16": partial(peer, count, SECONDS)} if peer else {},
                    rounds=3,
                )
            for together in TOGETHER:
                yield Case(
                    f"7B, {together} answers of {TOKENS} tokens about 30 s at once, {format}",
                    label="afnext",
                    ours=partial(self.answers, engine, TOKENS, together),
                    rounds=3,
                )
            yield self.steps(engine, format)
            if quantization is None:
                yield Case(
                    f"7B, the first token about half an hour, {format}",
                    label="afnext",
                    ours=partial(self.answers, engine, 1, 1, LONG),
                    peers={"transformers bfloat16": partial(peer, 1, LONG)} if peer else {},
                    rounds=2,
                )
                yield self.steps(engine, f"{format}, drawn", temperature=0.7, top_p=0.95, seed=1)
            del engine
            gc.collect()

    def steps(self, engine: Engine, format: str, **options: Any) -> Case:
        """The time of a token in the middle of a stream, and what it reads at least; ``options`` say how
        tokens are chosen.
        """

        runner = engine.runner
        handles: list[Handle] = []

        def step() -> list[int]:
            if not handles or handles[0].finished:
                engine.clear_caches()
                params = GenerationParams(max_tokens=2000, **options)
                handles[:] = [engine.submit([*self.ids, 100], self.windows, params)]
                next(handles[0])
            return [next(handles[0]) for _ in range(TOKENS)]

        held = runner.cache_bytes(1) * (len(self.ids) + TOKENS)
        return Case(
            f"7B, {TOKENS} tokens of a stream, {format}",
            label="afnext",
            ours=step,
            bytes=float(TOKENS * (runner.bytes_per_token + held)),
            dtype="bfloat16",
            rounds=3,
        )


def check_nano(device: torch.device) -> None:
    """nano in float32: greedy answers about a recording are those of the whole model, token by token, and
    drawn ones the same in a row and one by one.
    """

    net = AudioLanguageModel.from_pretrained(find_model("nano"), dtype=torch.float32, device=device)
    windows = list(cut_windows([noise(4.0)]))
    ids = [1, *[net.config.audio_token_id] * windows[0].num_tokens, 2, 3]
    engine = Engine(net, [])
    said = engine.submit(ids, windows, GenerationParams(max_tokens=24)).result().tokens
    audio = AudioBatch.collate([windows]).to(device, torch.float32)
    with torch.inference_mode():
        logits = net(torch.tensor([ids + said], device=device), audio)[0, len(ids) - 1 : -1]
    taken = logits.gather(1, torch.tensor(said, device=device)[:, None])[:, 0]
    lost = float((logits.max(-1).values - taken).max())
    assert lost < 1e-3, f"nano said a token that is less likely than another, by {lost:.2g}"
    drawn = GenerationParams(max_tokens=24, temperature=1.0, top_p=0.95, seed=1)
    # Whoever wants log-probabilities is served token by token.
    ways = (drawn, replace(drawn, logprobs=1))
    row, single = (engine.submit(ids, windows, way).result().tokens for way in ways)
    assert row == single, f"drawn in a row {row}, one by one {single}"
    assert row != said, "what was drawn are the likeliest tokens"
