"""What quantisation costs nano: divergence of its next-token distributions, and scores of its answers.

``python -m benchmarks.quantization --clips 60`` scores as many clips of each length as the model card
does; ``--json FILE`` keeps the table.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from afnext import ops
from afnext.audio.windows import AudioWindow
from afnext.engine.packed import FORMATS, PackedModel
from afnext.engine.pages import PagePool
from afnext.engine.pages import Sequence as CachedSequence
from afnext.evaluation.sound_events import evaluate
from afnext.hub import find_model
from afnext.model import AudioBatch, AudioLanguageModel
from afnext.training.data import Vocabulary
from afnext.training.synthesis import clip, generate, open_clips
from afnext.training.tasks import exchanges

from .results import write

SEED = 90_210  # of the card's held-out clips
LENGTHS = (3.1, 4.4, 5.7, 7.2, 8.6)
ASKED = 3  # questions about a clip
PAGE = 32
QUESTIONS = ("presence, present", "presence, absent", "count", "first", "when", "caption")


@dataclass(frozen=True)
class Variant:
    """A way to run the model.

    Attributes:
        quantization: as ``afnext.load`` takes it.
        dtype: of what is not quantised.
        activations: how products round x, if not as the engine does.
    """

    name: str
    quantization: str | None = None
    dtype: torch.dtype = torch.float32
    activations: str | None = None


VARIANTS = (
    Variant("bfloat16", dtype=torch.bfloat16),
    Variant("int8", "int8"),
    Variant("int8, int8 activations", "int8", activations="int8"),
    Variant("int4", "int4"),
    Variant("int4, int8 activations", "int4", activations="int8"),
)


@dataclass(frozen=True)
class Prompt:
    """A question about a clip with its true answer; ``answer`` tokens are the last of ``ids``."""

    ids: Tensor
    answer: int
    audio: AudioBatch


def prompts(vocab: Vocabulary, clips: int) -> Iterator[Prompt]:
    """Held-out clips; about each what is heard and when, and questions of other kinds."""
    rng = random.Random(0)
    for index in range(clips):
        scene = clip(SEED, LENGTHS[index % len(LENGTHS)], index)
        audio = AudioBatch.collate([[AudioWindow(scene.samples, 0, len(scene.samples))]])
        sound = vocab.encode("<sound>") * audio.num_tokens
        for exchange in exchanges(scene.events, ASKED, rng):
            lead = (*vocab.prefix, *sound, *vocab.close, *vocab.question(exchange.question))
            answer = vocab.answer(exchange.answer)
            yield Prompt(torch.tensor([*lead, *answer]), len(answer), audio)


class Listener:
    """The engine's packed model, which gives the logits of a whole prompt.

    Args:
        folder: of the model.
        variant: how it is run.
    """

    def __init__(self, folder: Path, variant: Variant) -> None:
        self.net = AudioLanguageModel.from_pretrained(folder, dtype=variant.dtype)
        self.dtype = variant.dtype
        # The engine has no such switch: its own choice is the default of ``ops.pack``.
        pack = (
            partial(ops.pack, activations=variant.activations) if variant.activations else ops.pack
        )
        with patch.object(ops, "pack", pack):
            self.packed = PackedModel(self.net, variant.quantization)

    def log_probabilities(self, prompt: Prompt) -> Tensor:
        """float64 ``[answer, vocab]`` of each token of the answer."""
        audio = prompt.audio.to(dtype=self.dtype)
        hidden = self.net.embed(prompt.ids[None], audio, encode=self.packed.encode)[0].contiguous()
        pages = -(-len(prompt.ids) // PAGE)
        pool = PagePool(self.net.config.text, pages, PAGE, self.dtype, torch.device("cpu"))
        hidden = self.packed.layers(hidden, CachedSequence(pool, len(prompt.ids)))
        return self.packed.logits(hidden[-prompt.answer - 1 : -1]).double().log_softmax(-1)


def divergences(folder: Path, clips: int) -> dict[str, dict[str, float]]:
    """Each variant against float32, over all tokens of the true answers.

    ``kl`` is the mean Kullback-Leibler divergence in nats, ``kl_p99`` its 99th percentile, ``same`` the
    share of tokens that are the likeliest of both.
    """
    vocab = Vocabulary(Tokenizer.from_file(str(folder / "tokenizer.json")))
    asked = list(prompts(vocab, clips))
    with torch.inference_mode():
        exact = Listener(folder, Variant("float32"))
        expected = [exact.log_probabilities(p) for p in asked]
        return {v.name: _divergence(Listener(folder, v), asked, expected) for v in VARIANTS}


def _divergence(
    listener: Listener, asked: Sequence[Prompt], expected: Sequence[Tensor]
) -> dict[str, float]:
    kl, same = [], []
    for prompt, true in zip(asked, expected, strict=True):
        found = listener.log_probabilities(prompt)
        kl.append((true.exp() * (true - found)).sum(-1))
        same.append(true.argmax(-1) == found.argmax(-1))
    every = torch.cat(kl)
    return {
        "tokens": len(every),
        "kl": float(every.mean()),
        "kl_p99": float(every.quantile(0.99)),
        "same": float(torch.cat(same).double().mean()),
    }


@torch.no_grad()
def rounded(net: AudioLanguageModel, quantization: str) -> AudioLanguageModel:
    """``net`` with the values that its quantised weights stand for, as the engine stores them."""
    layers, head, encoder = FORMATS[quantization]
    text = replace(net.config.text, tie_word_embeddings=False)
    net.config = replace(net.config, text=text)
    net.language_model.lm_head.weight = nn.Parameter(net.language_model.lm_head.weight.clone())
    for name, module in net.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv1d):
            continue
        format = encoder
        if name.startswith("language_model"):
            format = head if name.endswith("lm_head") else layers
        rows = module.weight.flatten(1)
        module.weight.copy_(ops.quantize(rows, format).dequantize().view_as(module.weight))
    return net


def scores(folder: Path, clips: int) -> dict[str, dict[str, float]]:
    """Shares of events and of answers that are right, ``clips`` of each length; weights rounded only."""
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "clips"
        for _ in generate(data, dict.fromkeys(LENGTHS, clips), SEED):
            pass
        found = {}
        for quantization in (None, *FORMATS):
            copy = folder
            if quantization is not None:
                copy = Path(temporary) / quantization
                net = AudioLanguageModel.from_pretrained(folder)
                rounded(net, quantization).save_pretrained(copy)
                shutil.copy(folder / "tokenizer.json", copy)
            found[quantization or "float32"] = _summary(evaluate(copy, open_clips(data)))
        return found


def _summary(result: dict[str, Any]) -> dict[str, float]:
    listing, questions = result["listing"]["2-10 s"], result["questions"]["2-10 s"]
    shown = {name: float(listing[name]) for name in ("recall", "precision", "recall_250ms")}
    return {**shown, **{name: questions[name]["right"] for name in QUESTIONS}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantization", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--clips", type=int, default=20, help="clips of each of the five lengths")
    parser.add_argument("--json", type=Path, help="write the tables there too")
    options = parser.parse_args(arguments)
    folder = find_model("nano")
    kl = divergences(folder, options.clips * len(LENGTHS))
    print(f" against float32, {next(iter(kl.values()))['tokens']} tokens of true answers")
    for name, row in kl.items():
        print(
            f"  {name:24} mean KL {row['kl']:.2e}, 99th percentile {row['kl_p99']:.2e} nats; "
            f"same likeliest token {row['same']:.2%}"
        )
    right = scores(folder, options.clips)
    print(f" right answers, weights rounded, {options.clips} clips of each of {LENGTHS} s")
    print(f"  {'':24} {'  '.join(right)}")
    for name in next(iter(right.values())):
        cells = (f"{right[format][name]:{len(format)}.1%}" for format in right)
        print(f"  {name:24} {'  '.join(cells)}")
    if options.json is not None:
        write(options.json, {"clips": options.clips, "divergence": kl, "scores": right})


def run() -> None:
    """The default size."""
    main([])


if __name__ == "__main__":
    main(sys.argv[1:])
