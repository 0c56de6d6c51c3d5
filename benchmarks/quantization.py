"""What int8 and int4 cost nano: errors of products, of next-token distributions, and of its answers."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import soundfile
import torch
from torch import Tensor, nn

import afnext
from afnext import ops
from afnext.audio.windows import SAMPLE_RATE, cut_windows
from afnext.chat import ChatTemplate, Message, Tokenizer, build_prompt
from afnext.convert import convert
from afnext.engine.gpu_model import GPU_FORMATS
from afnext.engine.packed import ACTIVATIONS, PackedModel
from afnext.engine.pages import PagePool, kv_dtype
from afnext.engine.pages import Sequence as CachedSequence
from afnext.evaluation.questions import Asker, Question, said_no, said_yes
from afnext.evaluation.score import Answered, Share, figures
from afnext.evaluation.words import transcript_scores
from afnext.hub import copy_companions, find_model
from afnext.model import AudioBatch, AudioLanguageModel
from afnext.model.encoder import PackedConv1d, gathered
from afnext.training import tasks
from afnext.training.synthesis import speech
from afnext.training.synthesis.banks import Banks
from afnext.training.synthesis.dataset import SceneSet
from afnext.training.synthesis.scenes import Scene
from afnext.training.synthesis.sentences import sentence
from afnext.training.tasks.exchange import ask

from .results import Failure, Table

SEED = 90_212  # of no training set
LENGTHS = (3.1, 4.4, 5.7, 7.2, 8.6)
CLIPS, QUICK_CLIPS = 20, 1  # of each length
CALIBRATION, QUICK_CALIBRATION = 20, 2  # clips, about each of which the model is asked for itself
OTHERS = 10_000  # index of the first of these
ASKED = 3  # questions about a clip
SENTENCES, QUICK_SENTENCES = 60, 4  # held-out ones, in voices that training knows
LONGEST = 60  # tokens of a transcript
PAGE = 32
ROWS = 512  # of a layer's input that its error is taken on
COLUMNS = {
    "recall": ("events", "recall"),
    "precision": ("events", "precision"),
    "classes, F1": ("events", "class f1"),
    "onset error": ("events", "onset error"),
    **{kind: (kind, "right") for kind in ("presence, present", "presence, absent", "when")},
    "WER": ("transcribe", "wer"),
}
"""Figures of the answers, by their names."""
POINTS = {"events": "class f1", "transcribe": "wer"}
"""What a recording's points are made of: of other kinds of question, whether the answer is right."""
# Of the product's norm: what rounding x to 16-bit integers may cost. Weights are what the format holds.
MOST = 0.0025
PRODUCTS = [(w, x) for w in ("int8", "int4-g32") for x in ("int16", "int8")]


@dataclass(frozen=True)
class Variant:
    """A way to run the model.

    Attributes:
        quantization: as ``afnext.load`` takes it.
        dtype: of what is not quantised.
        activations: how products round x, if not as the engine does.
        home: which of the folders: "nano", "calibrated" (converted with recordings to calibrate on), or a
            format of a GPU's, whose numbers the decoder's weights are there.
        kv_cache_dtype: as ``afnext.load`` takes it.
        loses: most points that answers may lose beside float32, where that is more than noise; None where
            nobody runs the model so.
    """

    name: str
    quantization: str | None = None
    dtype: torch.dtype = torch.float32
    activations: str | None = None
    home: str = "nano"
    kv_cache_dtype: str | None = None
    loses: float | None = None

    def packing(self) -> AbstractContextManager[object]:
        """What to load the model in: the engine has no switch for ``activations``."""
        chosen = dict.fromkeys(ACTIVATIONS, self.activations) if self.activations else {}
        return patch.dict(ACTIVATIONS, chosen)


EXACT = Variant("float32")
INT4_LOSES = 0.02
VARIANTS = (
    Variant("bfloat16", dtype=torch.bfloat16, loses=0.0),
    Variant("int8", "int8", loses=0.0),
    Variant("int8, x int8", "int8", activations="int8"),
    Variant("int8, x int16", "int8", activations="int16"),
    Variant("int4", "int4", loses=INT4_LOSES),
    Variant("int4, x int16", "int4", activations="int16"),
    Variant("int4, calibrated", "int4", home="calibrated", loses=INT4_LOSES),
    Variant("kv int8", kv_cache_dtype="int8", loses=0.0),
    Variant("int4 of a GPU", home="int4", loses=INT4_LOSES),
    Variant("fp8 of a GPU", home="fp8", loses=0.0),
)


@dataclass(frozen=True)
class Prompt:
    """A question about a clip with its true answer; ``answer`` tokens are the last of ``ids``."""

    ids: Tensor
    answer: int
    audio: AudioBatch


def outcomes(quick: bool) -> Iterator[Table | Failure]:
    """Tables from a single product to whole answers."""
    folder, clips = find_model("nano"), (QUICK_CLIPS if quick else CLIPS) * len(LENGTHS)
    asked = list(prompts(folder, clips))
    with torch.inference_mode():
        yield from errors(
            "products of nano's layers, on its own activations: worst layer of each kind",
            nano_products(folder, asked[:: ASKED * len(LENGTHS)]),
        )
        yield from errors("products [256, 3584] x [3584, 3584], synthetic", synthetic_products())
    with TemporaryDirectory() as scratch:
        recordings = QUICK_CALIBRATION if quick else CALIBRATION
        calibrated = calibrated_folder(folder, Path(scratch), recordings)
        folders = {"nano": folder, "calibrated": calibrated}
        for format in ("int4", "fp8"):
            folders[format] = as_on_gpu(folder, Path(scratch) / f"{format} of a GPU", format)
        homes = {v: folders[v.home] for v in (EXACT, *VARIANTS)}
        with torch.inference_mode():
            yield divergences(homes, asked)
        yield from scores(homes, clips, spoken(QUICK_SENTENCES if quick else SENTENCES))


def calibrated_folder(folder: Path, scratch: Path, count: int) -> Path:
    """The model in int4, calibrated on so many clips beside those that are asked about."""
    recordings = []
    for index in range(OTHERS, OTHERS + count):
        recordings.append(scratch / f"{index}.wav")
        soundfile.write(recordings[-1], scene(index).samples, SAMPLE_RATE)
    return convert(folder, scratch / "int4", quantization="int4", calibrate=recordings)


@torch.no_grad()
def as_on_gpu(folder: Path, target: Path, format: str) -> Path:
    """The model in float32, with the numbers that a GPU's format of the decoder's weights stands for.

    What a GPU multiplies by them is rounded to bfloat16, which is not done here.
    """
    net = AudioLanguageModel.from_pretrained(folder, dtype=torch.float32)
    layers, head = GPU_FORMATS[format]
    decoder = net.language_model
    net.config = replace(net.config, text=replace(net.config.text, tie_word_embeddings=False))
    decoder.lm_head.weight = nn.Parameter(decoder.lm_head.weight.clone())  # the embeddings stay
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            weight = ops.quantize(module.weight, head if module is decoder.lm_head else layers)
            module.weight = nn.Parameter(weight.dequantize(torch.float32))
    net.save_pretrained(target)
    copy_companions(folder, target)
    return target


# --- one product ---------------------------------------------------------------------------------------


def errors(name: str, products: Iterator[tuple[str, Tensor, Tensor]]) -> Iterator[Table | Failure]:
    """Of ``linear`` against float64 on the very weights that a format holds, as a share of the norm.

    ``products`` gives (row of the table, x, weight); of several in a row the worst is shown.
    """
    rows: dict[str, dict[str, float]] = {}
    for kind, x, weight in products:
        row = rows.setdefault(kind, {})
        for format, activations in PRODUCTS:
            column = f"{format.removesuffix('-g32')}, x {activations}"
            error = product_error(x, weight, format, activations)
            row[column] = max(row.get(column, 0.0), error)
    yield Table("quantization", name, rows, dict.fromkeys(next(iter(rows.values())), ".3%"))
    for kind, row in rows.items():
        for column, error in row.items():
            if column.endswith("int16") and not error < MOST:
                said = f"{kind}, {column}: off by {error:.3%}, more than {MOST:.2%}"
                yield Failure("quantization", name, said)


def product_error(x: Tensor, weight: Tensor, format: str, activations: str) -> float:
    """How far the product is from float64 on the dequantised weight, relative to its norm."""
    quantized = ops.quantize(weight, format)
    exact = x.double() @ quantized.dequantize(torch.float64).T
    found = ops.linear(x, ops.pack(quantized, activations=activations))
    return float((found - exact).norm() / exact.norm())


def nano_products(folder: Path, asked: Sequence[Prompt]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Kind, input and weight of every layer, as the engine multiplies them."""
    net = AudioLanguageModel.from_pretrained(folder, dtype=torch.float32)
    seen: dict[str, list[Tensor]] = defaultdict(list)
    layers = {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv1d)}

    def keep(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        rows = gathered(*args) if isinstance(module, PackedConv1d) else args[0]
        seen[name].append(rows.reshape(-1, layers[name].weight[0].numel()))

    for name, module in layers.items():
        module.register_forward_pre_hook(partial(keep, name))
    for prompt in asked:
        net(prompt.ids[None], prompt.audio)
    for name, module in layers.items():
        weight = module.weight
        if isinstance(module, PackedConv1d):
            weight = weight.transpose(1, 2)
        yield kind_of(name), torch.cat(seen[name])[:ROWS], weight.flatten(1).contiguous()


def kind_of(name: str) -> str:
    """ "decoder down_proj" of ``language_model.model.layers.3.mlp.down_proj``."""
    parts = {
        "audio_tower": "encoder",
        "multi_modal_projector": "adaptor",
        "language_model": "decoder",
    }
    layer = name.rpartition(".")[2]
    if layer in ("q_proj", "k_proj", "v_proj"):
        layer = "qkv"
    elif layer in ("gate_proj", "up_proj"):
        layer = "gate, up"
    return f"{parts[name.partition('.')[0]]} {layer}"


def synthetic_products() -> Iterator[tuple[str, Tensor, Tensor]]:
    """Activations from tame to wild, Gaussian weights."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 3584, generator=generator) for n in (3584, 256))
    torch.manual_seed(0)
    yield "Gaussian", x, weight
    yield (
        "Student's t, 3 degrees of freedom",
        torch.distributions.StudentT(3.0).sample(x.shape),
        weight,
    )
    loud = torch.distributions.LogNormal(0.0, 1.5).sample(x.shape[1:])
    yield "Gaussian, channels log-normal (sigma 1.5)", x * loud, weight
    few = torch.where(torch.rand(3584) < 0.002, 100.0, 1.0)
    yield "Gaussian, 0.2 % of the channels x100", x * few, weight


# --- the next token ------------------------------------------------------------------------------------


def scene(index: int) -> Scene:
    """A held-out clip of sounds."""
    seconds = LENGTHS[index % len(LENGTHS)]
    made, _ = SceneSet("sounds", 1, seconds, seconds).scene(SEED, index, Banks(Path()))
    return made


def prompts(folder: Path, clips: int) -> Iterator[Prompt]:
    """Held-out clips; about each what is heard and when, and questions of other kinds."""
    tokenizer, template = Tokenizer.from_folder(folder), ChatTemplate.from_folder(folder)
    (end,) = tokenizer.encode("<|im_end|>")
    rng = random.Random(0)
    for index in range(clips):
        heard = scene(index)
        windows = list(cut_windows([heard.samples]))
        audio = AudioBatch.collate([windows])
        listed = tasks.about(heard, rng, {"list": 1.0})
        for exchange in (listed, *(tasks.about(heard, rng) for _ in range(ASKED - 1))):
            message = Message("user", exchange.question, heard.samples)
            lead = build_prompt([message], [windows], tokenizer, template).ids
            answer = [*tokenizer.encode_plain(exchange.answer), end]
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
        self.kept = kv_dtype(variant.kv_cache_dtype, variant.dtype, torch.device("cpu"))
        with variant.packing():
            self.packed = PackedModel(self.net, variant.quantization)

    def log_probabilities(self, prompt: Prompt) -> Tensor:
        """float64 ``[answer, vocab]`` of each token of the answer."""
        audio = prompt.audio.to(dtype=self.dtype)
        hidden = self.net.embed(prompt.ids[None], audio, encode=self.packed.encode)[0].contiguous()
        pages = -(-len(prompt.ids) // PAGE)
        pool = PagePool(self.net.config.text, pages, PAGE, self.kept, torch.device("cpu"))
        hidden = self.packed.layers(hidden, CachedSequence(pool, len(prompt.ids)))
        return self.packed.logits(hidden[-prompt.answer - 1 : -1]).double().log_softmax(-1)


def divergences(homes: Mapping[Variant, Path], asked: Sequence[Prompt]) -> Table:
    """Each variant against float32, over all tokens of the true answers.

    Kullback-Leibler divergence in nats, its mean and 99th percentile; and the share of tokens that are the
    likeliest of both.
    """
    exact = Listener(homes[EXACT], EXACT)
    expected = [exact.log_probabilities(p) for p in asked]
    rows = {v.name: _divergence(Listener(homes[v], v), asked, expected) for v in VARIANTS}
    tokens = sum(p.answer for p in asked)
    name = f"next tokens against float32, {tokens} tokens of {len(asked)} true answers"
    formats = {"mean KL": ".2e", "99th percentile": ".2e", "same likeliest": ".2%"}
    return Table("quantization", name, rows, formats)


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
        "mean KL": float(every.mean()),
        "99th percentile": float(every.quantile(0.99)),
        "same likeliest": float(torch.cat(same).double().mean()),
    }


# --- answers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sentence:
    """One that is spoken: float32 samples at 16 kHz, and its words."""

    samples: np.ndarray
    text: str


def spoken(count: int) -> list[Sentence]:
    """Held-out sentences; none where a program that speaks is not installed."""
    if missing := speech.missing_programs():
        print(f" WER: left out (needs {', '.join(missing)})")
        return []
    rng = np.random.default_rng(SEED)
    texts = [sentence(rng, held_out=True) for _ in range(count)]
    return [
        Sentence(speech.speak(text, speech.who_says(i, speech.KNOWN_VOICES)) * 0.1, text)
        for i, text in enumerate(texts)
    ]


def scores(
    homes: Mapping[Variant, Path], clips: int, sentences: Sequence[Sentence]
) -> Iterator[Table | Failure]:
    """What each variant answers about held-out clips and says that is spoken, run by the engine as a user's
    would be; and a failure where it loses more than it may.
    """
    answered = {v: _answers(home, v, clips, sentences) for v, home in homes.items()}
    rows = {v.name: _figures(found) for v, found in answered.items()}
    name = f"right answers about {clips} held-out clips of {min(LENGTHS)} to {max(LENGTHS)} s"
    if sentences:
        name += f"; word errors of {len(sentences)} sentences"
    formats = {column: ".1%" for column in rows[EXACT.name] if column != "onset error"}
    yield Table("quantization", name, rows, formats | {"onset error": ".3f"})
    for variant, found in answered.items():
        if variant.loses is not None:
            for said in losses(variant, points(found), points(answered[EXACT])):
                yield Failure("quantization", name, said)


def points(answered: Sequence[Answered]) -> dict[str, dict[str, float]]:
    """By "answers" and "transcripts" and by recording, from 0 to 1: of transcripts, less its word errors."""
    found: dict[str, dict[str, list[float]]] = {"answers": {}, "transcripts": {}}
    for item in answered:
        score = item.score(item.answer).get(POINTS.get(item.kind, "right"))
        if isinstance(score, Share) and score.whole:
            share = score.part / score.whole
            said = item.kind == "transcribe"
            own = found["transcripts" if said else "answers"].setdefault(item.recording, [])
            own.append(1 - share if said else share)
    return {
        kind: {recording: sum(own) / len(own) for recording, own in of.items()}
        for kind, of in found.items()
    }


def losses(
    variant: Variant,
    found: Mapping[str, Mapping[str, float]],
    exact: Mapping[str, Mapping[str, float]],
) -> Iterator[str]:
    """Where a variant loses more points than it may, in words.

    Noise is twice the standard error of the mean difference, recording by recording.
    """
    assert variant.loses is not None
    for kind, own in found.items():
        lost = [exact[kind][recording] - value for recording, value in own.items()]
        if len(lost) < 2:
            continue
        mean = float(np.mean(lost))
        noise = 2 * float(np.std(lost, ddof=1)) / len(lost) ** 0.5
        if mean > max(variant.loses, noise):
            yield (
                f"{variant.name}: {kind} lose {100 * mean:.1f} points of 100, more than "
                f"{100 * variant.loses:.1f} and than noise ({100 * noise:.1f})"
            )


def questions(key: str, heard: Scene) -> Iterator[Question]:
    """What is heard and when, what is there and what is not."""
    asker = Asker(key, heard, random.Random(key))
    yield from asker.ask("list")
    yield from asker.ask("presence", "present", said_yes)
    yield from asker.ask("presence", "absent", said_no)
    yield from asker.ask("when")


def _answers(
    folder: Path, variant: Variant, clips: int, sentences: Sequence[Sentence]
) -> list[Answered]:
    """Lists of events (an onset is right within 250 ms; its error is the median in seconds), questions,
    transcripts.
    """
    with variant.packing():
        assistant = afnext.load(
            folder, dtype=variant.dtype, quantization=variant.quantization,
            kv_cache_dtype=variant.kv_cache_dtype,
        )  # fmt: skip
    answered = []
    for index in range(clips):
        heard = scene(index)
        for asked in questions(str(index), heard):
            reply = assistant.ask(heard.samples, asked.text, max_tokens=asked.longest)
            answered.append(Answered(asked.kind, asked.family, str(index), reply.text, asked.judge))
    for index, said in enumerate(sentences):
        text = ask("transcribe", "", random.Random(index)).question
        reply = assistant.ask(said.samples, text, max_tokens=LONGEST)
        judge = partial(transcript_scores, said.text)
        answered.append(Answered("transcribe", "transcribe", f"said {index}", reply.text, judge))
    return answered


def _figures(answered: Sequence[Answered]) -> dict[str, float]:
    found = figures(answered)
    return {
        column: found[kind][measure].value
        for column, (kind, measure) in COLUMNS.items() if kind in found
    }  # fmt: skip
