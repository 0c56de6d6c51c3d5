"""A question about a recording, from samples to text, beside transformers on the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

import numpy as np
import torch
from transformers import AutoTokenizer, MusicFlamingoForConditionalGeneration

import afnext
from afnext.audio import load
from afnext.chat import Message, build_prompt
from afnext.hub import find_model

from .case import Case
from .models.transformers_music_flamingo import generate

QUESTION = "What sounds do you hear, and when?"
NEW_TOKENS = 32


def question(seconds: float) -> Case:
    """Greedy decoding of exactly ``NEW_TOKENS`` tokens by both."""
    folder = find_model("nano")
    rng = np.random.default_rng(0)
    samples = (rng.standard_normal(int(seconds * 16_000)) * 0.05).astype(np.float32)
    ours = afnext.load("nano", dtype="float32")
    ours.engine.eos = frozenset()  # neither side stops early
    theirs = MusicFlamingoForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    windows = load(samples, sample_rate=16_000)
    prompt = build_prompt(
        [Message("user", QUESTION, samples)], [windows], ours.tokenizer, ours.template
    )

    def transformers_answer() -> str:
        tokens = generate(theirs, prompt.ids, windows, NEW_TOKENS)
        return str(tokenizer.decode(tokens[0, len(prompt.ids) :], skip_special_tokens=True))

    def our_answer() -> str:
        ours.engine.clear_caches()  # the same question again would find everything computed
        return ours.ask(samples, QUESTION, max_tokens=NEW_TOKENS).text

    def check() -> None:
        mine, others = our_answer().split(), transformers_answer().split()
        different = sum(a != b for a, b in zip_longest(mine, others))
        if different:
            raise AssertionError(f"{different} of {len(others)} words differ from transformers'")

    return Case(
        f"{seconds:g} s of audio, {NEW_TOKENS} tokens, float32",
        label="afnext",
        ours=our_answer,
        peers={"transformers": transformers_answer},
        check=check,
        rounds=7,
        slow=seconds > 10,
    )


def cases() -> Iterator[Case]:
    """Both give the same text."""
    for seconds in (4.0, 30.0, 120.0):
        yield question(seconds)
