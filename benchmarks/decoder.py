"""Prefill and decode in the released geometry, three formats, beside transformers, torch and llama.cpp.

Slices of full width with random weights: eight layers for a decode step, one for a prefill, which takes
seconds a layer. A rate of bytes counts our weights and cache for everybody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from afnext.engine.pages import Sequence
from afnext.engine.runner import Runner
from afnext.hub import find_model
from afnext.model import AudioLanguageModel
from afnext.ops import runtime

from .case import Case
from .machine import largest_cache
from .models import llama_cpp
from .models.released import NO_AUDIO, TEXT, geometry, random_model, slice_of
from .models.torch_quantized import replace_linears
from .models.transformers_qwen2 import Qwen2, qwen2

LAYERS, CONTEXT, PROMPT = 8, 2048, 2048
FORMATS = (None, "int8", "int4")
PAGE = 32
VOCABULARY = 1024
# Most that our logits may be off, as a share of transformers' in the weights' own dtype. Layers of random
# weights magnify what rounding does; a wrong product is off by more than 1.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.03, "int8": 0.15, "int4": 0.8}
# Times that transformers in the weights' own dtype should take, over ours.
Targets = Mapping[str | None, float]
NANO: Targets = {None: 5.0}
DECODE: Targets = {None: 1.6, "int8": 3.0, "int4": 4.5}
PREFILL: Targets = {None: 1.5, "int8": 2.5}
LLAMA: Targets = {None: 1.3, "int8": 2.0, "int4": 1.3}  # of a decode step


class Ours:
    """One step of the engine's runner, over and over.

    Args:
        net: the model.
        quantization: as ``Runner`` takes it.
        ids: ``[T]``, the tokens of the step.
        context: random ones that the cache holds before it.
    """

    def __init__(
        self, net: AudioLanguageModel, quantization: str | None, ids: Tensor, context: int
    ) -> None:
        self.runner, self.ids, self.context = Runner(net, quantization), ids, context
        tokens = context + len(ids)
        self.sequence = Sequence(self.runner.new_pool(tokens, PAGE), tokens)
        generator = torch.Generator().manual_seed(1)
        for pages in (*self.sequence.pool.keys, *self.sequence.pool.values):
            pages.normal_(generator=generator)

    def __call__(self) -> Tensor:
        """Logits ``[vocab]`` of the last token."""
        self.sequence.length = self.context
        if self.context:
            return self.runner.decode(int(self.ids[0]), self.sequence)
        return self.runner.prefill(self.runner.embed(self.ids), self.sequence)

    def cache(self) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of each layer as transformers keeps them, ``[1, Hkv, context, D]``."""
        table, pool = self.sequence.table[0], self.sequence.pool

        def contiguous(pages: Tensor) -> Tensor:
            return pages[table].transpose(0, 1).flatten(1, 2)[None, :, : self.context]

        return [contiguous(p) for p in pool.keys], [contiguous(p) for p in pool.values]

    @property
    def bytes(self) -> int:
        """What a decode step reads."""
        pool = self.sequence.pool
        return self.runner.bytes_per_token + self.context * sum(
            pages[0, :, 0].nbytes for pages in (*pool.keys, *pool.values)
        )

    @property
    def flops(self) -> float:
        """Of a prefill: layers, causal attention, and the head for one token."""
        text, tokens = self.runner.net.config.text, len(self.ids)
        layers = self.runner.net.language_model.model.layers
        weights = sum(p.numel() for p in layers.parameters() if p.dim() == 2)
        pairs = tokens * (tokens + 1) / 2 * text.num_attention_heads * text.num_hidden_layers
        head = text.hidden_size * text.vocab_size
        return 2 * tokens * weights + 4 * text.head_dim * pairs + 2 * head


def cases() -> Iterator[Case]:
    """nano's decode step, then in every format the 7B geometry's decode step and prefill."""
    yield from nano()
    text = replace(TEXT, vocab_size=32_000, num_hidden_layers=LAYERS)
    net = random_model(geometry(text, NO_AUDIO))
    for quantization in FORMATS:
        name = f"7B, {LAYERS} of 28 layers, decode behind {CONTEXT}"
        yield from _step(net, name, quantization, torch.tensor([40]), CONTEXT, DECODE)
    # A small vocabulary, as llama.cpp must give the logits of all tokens to run all of the last layer.
    net = slice_of(net, 1, VOCABULARY)
    prompt = torch.arange(PROMPT) % (VOCABULARY - 24)  # no audio token
    for quantization in FORMATS:
        name = f"7B, 1 of 28 layers, prefill of {PROMPT}"
        yield from _step(net, name, quantization, prompt, 0, PREFILL)


def nano() -> Iterator[Case]:
    """Steps in a row, as generation makes them: of a single one so short most is the threads' waking."""
    net = AudioLanguageModel.from_pretrained(find_model("nano"), dtype=torch.float32)
    yield from _step(
        net, "nano, 32 steps behind 500", None, torch.tensor([40]), 500, NANO, steps=32
    )


def _step(
    net: AudioLanguageModel,
    name: str,
    quantization: str | None,
    ids: Tensor,
    context: int,
    targets: Targets | None = None,
    steps: int = 1,
) -> Iterator[Case]:
    """One step (or several, each behind ``context`` again) in one format by everybody.

    A case outlives this function, but reaches the contestants through ``run`` alone, which is emptied:
    they go before the next ones come.
    """
    dtype = str(net.language_model.lm_head.weight.dtype).removeprefix("torch.")
    format, goal = quantization or dtype, (targets or {}).get(quantization)
    goals = {f"transformers {dtype}": goal} if goal else {}
    if targets is DECODE:
        goals[f"llama.cpp {llama_cpp.FORMATS[quantization]}"] = LLAMA[quantization]
    with ExitStack() as held:
        try:
            ours = Ours(net, quantization, ids, context)
        except ValueError as error:
            print(f" {name}, {format}: left out ({error})")
            return
        run: dict[str, Callable[[], object]] = {"ours": ours}
        held.callback(run.clear)
        run[f"transformers {dtype}"] = Qwen2(qwen2(net), ids, *ours.cache())
        if quantization:
            model = qwen2(net)
            replace_linears(model, quantization)
            run[f"torch {quantization}"] = Qwen2(model, ids, *ours.cache())
        if dtype == "bfloat16" and llama_cpp.installed():
            threads = runtime.num_threads()
            run[f"llama.cpp {llama_cpp.FORMATS[quantization]}"] = held.enter_context(
                llama_cpp.LlamaCpp(net, quantization, ids.tolist(), context, threads)
            )
        flops, moved = (0.0, steps * ours.bytes) if context else (ours.flops, 0)
        if ours.bytes < largest_cache():
            moved = 0

        def again(who: str) -> object:
            for _ in range(steps - 1):
                run[who]()
            return run[who]()

        def check() -> None:
            logits, expected = run["ours"](), run[f"transformers {dtype}"]()
            assert isinstance(logits, Tensor)
            assert isinstance(expected, Tensor)
            error = float((logits.float() - expected.float()).norm() / expected.float().norm())
            if not error < TOLERANCES[format]:
                raise AssertionError(
                    f"logits are off by {error:.1%}, more than {TOLERANCES[format]:.1%}"
                )

        yield Case(
            f"{name}, {format}",
            label="afnext",
            ours=partial(again, "ours"),
            peers={who: partial(again, who) for who in run if who != "ours"},
            flops=flops,
            bytes=moved,
            dtype="int8" if quantization else dtype,
            check=check,
            targets=goals,
            context=torch.inference_mode,
            rounds=2 if flops else 5,
            slow=bool(flops) or quantization == "int8",
        )
