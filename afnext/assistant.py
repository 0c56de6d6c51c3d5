"""The model with everything around it: ask a recording, get an answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from .audio import AudioWindow, load
from .audio.loading import MAX_SECONDS
from .audio.windows import SAMPLE_RATE
from .chat import ChatTemplate, Message, Segment, Tokenizer, Variant, build_prompt, parse_timestamps
from .chat.messages import AudioSource, as_messages
from .chat.thinking import ThinkingSplitter
from .chat.variants import detect_variant, get_variant
from .engine import Engine, Generation, GenerationParams, Timings
from .engine.constraint import Constraints
from .engine.packed import require_quantization, stored_quantization
from .engine.packed_cache import PackedCache, cache_root
from .errors import ChatError
from .hub import find_model
from .model import AudioLanguageModel
from .model.checkpoint import read_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request took in and gave out.

    Attributes:
        prompt_tokens: text and audio tokens of the prompt.
        audio_tokens: of these, audio (25 a second).
        completion_tokens: generated, thinking included.
        audio_seconds: length of all recordings.
    """

    prompt_tokens: int
    audio_tokens: int
    completion_tokens: int
    audio_seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        text: the answer without the thinking.
        thinking: what the model wrote in ``<think>``, or "".
        segments: the answer's timestamps, in seconds, with what each is about.
        usage: tokens and seconds.
        timings: where the time went.
        stopped: "end" (the model was done), "length" (``max_tokens`` or the context ran out), "stop"
            (a stop string).
    """

    text: str
    thinking: str
    segments: list[Segment]
    usage: Usage
    timings: Timings
    stopped: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of streamed text, made of whole characters.

    Attributes:
        text: may be "" in the last piece.
        thinking: whether it belongs to the thinking.
        reply: the whole reply, in the last piece only.
    """

    text: str
    thinking: bool = False
    reply: Reply | None = None

    def __str__(self) -> str:
        return self.text


class Assistant:
    """A model that answers questions about recordings; ``afnext.load`` makes one.

    Attributes:
        net: the network, a ``torch.nn.Module``.
        tokenizer, template, variant: how conversations become tokens.

    Not safe to call from several threads at once.
    """

    def __init__(
        self,
        net: AudioLanguageModel,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        variant: Variant,
        *,
        quantization: str | None = None,
        cache: PackedCache | None = None,
    ) -> None:
        self.net = net.eval()
        self.tokenizer = tokenizer
        self.template = template
        self.variant = variant
        if len(tokenizer.eos_ids) == 0:
            raise ValueError("tokenizer: no token ends an answer (eos_token)")
        self.engine = Engine(net, sorted(tokenizer.eos_ids), quantization=quantization, cache=cache)
        self._constraints = Constraints(tokenizer, net.config.text.vocab_size)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        variant: str | None = None,
        quantization: str | None = None,
    ) -> Assistant:
        """Read a model folder; see ``afnext.load``."""
        config = read_json(folder / "config.json") or {}
        chosen = get_variant(variant) if variant else detect_variant(folder, config)
        on_cpu = torch.device(device).type == "cpu"
        net = AudioLanguageModel.from_pretrained(
            folder, dtype=dtype, device=device, integers_alone=on_cpu
        )
        if (stored := stored_quantization(net)) is not None:
            if quantization not in (None, stored):
                raise ValueError(
                    f"quantization: {folder} holds {stored} weights, cannot be {quantization}"
                )
            quantization = stored if on_cpu else None
        tokenizer = Tokenizer.from_folder(folder)
        template = ChatTemplate.from_folder(
            folder, default_system=chosen.system_prompt, variables=tokenizer.special_tokens
        )
        cache = None
        if quantization is not None and (root := cache_root()) is not None:
            files = sorted(folder.glob("*.safetensors"))
            # The network's own dtype: the argument may be None, which is the folder's.
            cache = PackedCache(files, quantization, net.language_model.lm_head.weight.dtype, root)
        return cls(net, tokenizer, template, chosen, quantization=quantization, cache=cache)

    def ask(
        self, audio: AudioSource | Sequence[AudioSource], question: str, **options: Any
    ) -> Reply:
        """Answer ``question`` about one recording or several, given in order.

        Args:
            audio: a path, bytes, an array of 16 kHz samples, a pair (samples, rate), or a list of these.
            question: the text of the turn.
            options: see ``stream``.

        Raises:
            ChatError: the question is empty; else see ``stream``.
        """
        if not question.strip():
            raise ChatError("question: is empty")
        return self.reply([Message("user", question, audio)], **options)

    def transcribe(self, audio: AudioSource | Sequence[AudioSource], **options: Any) -> Reply:
        """What is said in a recording, by the variant's own prompt."""
        return self.ask(audio, self.variant.prompt("transcribe"), **options)

    def caption(
        self,
        audio: AudioSource | Sequence[AudioSource],
        *,
        detailed: bool = False,
        **options: Any,
    ) -> Reply:
        """A description of a recording, short or detailed, by the variant's own prompt."""
        return self.ask(
            audio, self.variant.prompt("describe" if detailed else "caption"), **options
        )

    def reply(
        self, messages: str | Message | Iterable[Message | Mapping[str, Any]], **options: Any
    ) -> Reply:
        """The answer to a conversation; arguments as in ``stream``."""
        for piece in self.stream(messages, **options):
            if piece.reply is not None:
                return piece.reply
        raise RuntimeError("a stream ends with its reply")

    def stream(
        self,
        messages: str | Message | Iterable[Message | Mapping[str, Any]],
        *,
        params: GenerationParams | None = None,
        max_seconds: float = MAX_SECONDS,
        truncate: bool = False,
        partial: bool = False,
        **options: Any,
    ) -> Iterator[Piece]:
        """Answer a conversation as it is written.

        Args:
            messages: a question, a ``Message``, or a sequence of them (or of chat-completions objects).
            params: how to generate; by default the variant's own settings.
            max_seconds: longest recording that is taken.
            truncate: use the first ``max_seconds`` of a longer one instead of refusing it.
            partial: use what precedes the damage in a broken file, with an ``AudioWarning``, instead of
                refusing it.
            options: fields of ``GenerationParams`` to change: max_tokens, temperature, top_k, top_p,
                min_p, repetition_penalty, seed, stop; json_schema, choice or regex.

        Returns:
            An iterator of pieces; the last one holds the whole ``Reply``. Closing it early stops the
            work and frees the cache.

        Raises:
            AudioError: a recording that cannot be used.
            ChatError: a conversation that cannot be rendered, or is too long.
            ValueError: an option out of its range.
        """
        conversation = as_messages(messages)
        params = self._params(params, options)
        clock = perf_counter()
        recordings = [
            self._windows(
                source, recording=index, max_seconds=max_seconds, truncate=truncate, partial=partial
            )
            for index, source in enumerate(s for m in conversation for s in m.audio)
        ]
        decoding = perf_counter() - clock
        prompt = build_prompt(
            conversation,
            recordings,
            self.tokenizer,
            self.template,
            max_tokens=self.engine.max_context - 1,
        )
        tail = self.tokenizer.decode(prompt.ids[-4:], skip_special=False)
        opened = tail.rstrip().endswith("<think>")
        if opened and params.grammar is not None:
            raise ChatError(
                f"{params.grammar[0]}: this model's template has every answer begin with thinking"
            )
        record, tokens = self.engine.generate(prompt.ids, prompt.windows, params)
        record.timings.decode_audio = decoding
        seconds = [sum(w.valid_samples for w in windows) / SAMPLE_RATE for windows in recordings]
        return self._pieces(record, tokens, params, seconds, opened)

    def params(self, **options: Any) -> GenerationParams:
        """How the variant generates, with ``options`` changed, checked and ready for ``stream``."""
        return self._params(None, options)

    def _params(
        self, params: GenerationParams | None, options: Mapping[str, Any]
    ) -> GenerationParams:
        known = {f.name for f in dataclasses.fields(GenerationParams)}
        for name in options:
            if name not in known:
                raise TypeError(f"unknown option {name!r}; there are: {', '.join(sorted(known))}")
        if params is None:
            params = GenerationParams(**asdict(self.variant.sampling))
        params = replace(params, **options)
        if params.grammar is not None:
            params = replace(params, constraint=self._constraints.compile(*params.grammar))
        return params

    def _windows(self, source: AudioSource, **options: Any) -> list[AudioWindow]:
        rate: int | None = None
        if isinstance(source, tuple):
            source, rate = source
        elif hasattr(source, "shape"):
            rate = SAMPLE_RATE
        return load(source, sample_rate=rate, **options)

    def _pieces(
        self,
        record: Generation,
        tokens: Iterator[int],
        params: GenerationParams,
        seconds: Sequence[float],
        opened: bool,
    ) -> Iterator[Piece]:
        decoder, splitter = self.tokenizer.stream(), ThinkingSplitter(opened)
        stops = _StopStrings(params.stop)
        parts: dict[bool, list[str]] = {True: [], False: []}

        def split(text: str, last: bool = False) -> Iterator[Piece]:
            for channel, piece in (*splitter.push(text), *(splitter.flush() if last else ())):
                parts[channel == "thinking"].append(piece)
                yield Piece(piece, channel == "thinking")

        for token in tokens:
            yield from split(stops.push(decoder.push(token)))
            if stops.found:
                record.stopped = "stop"
                break
        tokens.close()  # type: ignore[attr-defined]
        rest = "" if stops.found else stops.push(decoder.flush()) + stops.flush()
        yield from split(rest, last=True)
        text, thinking = "".join(parts[False]), "".join(parts[True])
        timings, longest = record.timings, max(seconds, default=0.0)
        timings.first_token += timings.decode_audio
        timings.total += timings.decode_audio
        yield Piece(
            "",
            reply=Reply(
                text=text,
                thinking=thinking,
                segments=parse_timestamps(text, duration=longest or None),
                usage=Usage(
                    record.prompt_tokens,
                    record.audio_tokens,
                    len(record.tokens),
                    round(sum(seconds), 3),
                ),
                timings=timings,
                stopped=record.stopped,
            ),
        )


@dataclass(slots=True)
class _StopStrings:
    """Holds back text that may be the start of a stop string."""

    stops: tuple[str, ...]
    found: bool = False
    _held: str = field(default="", repr=False)

    def push(self, text: str) -> str:
        """Text that is certain to come before any stop string."""
        if not self.stops:
            return text
        self._held += text
        at = min((i for s in self.stops if (i := self._held.find(s)) >= 0), default=-1)
        if at >= 0:
            self.found = True
            text, self._held = self._held[:at], ""
            return text
        keep = max(
            n for s in self.stops for n in range(len(s)) if n == 0 or self._held.endswith(s[:n])
        )
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def flush(self) -> str:
        """The end: what was held back is text after all."""
        text, self._held = self._held, ""
        return text


def load_model(
    model: str | Path = "nano",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantization: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
) -> Assistant:
    """Load a model to talk to.

    Args:
        model: "nano" (comes with afnext), a folder in transformers' ``musicflamingo`` or
            ``audioflamingo3`` layout, or a Hugging Face id.
        device: "cpu", "cuda", ...; by default CUDA where there is one, else the CPU.
        dtype: "float32" or "bfloat16" (or torch's); by default the folder's own on a GPU, and on a CPU
            float32 where the folder's is.
        quantization: "int8" or "int4" (CPU only): products read weights of so many bits, quantised as they
            are loaded; "int4" keeps the encoder, the adaptor and the head in 8. By default weights keep
            ``dtype``.
        variant: "instruct", "think", "captioner", "music-flamingo", "audio-flamingo-3" or "nano"; by
            default what the folder's config and name say.
        revision: branch, tag or commit of a Hugging Face id.

    Raises:
        CheckpointError: the folder is missing, incomplete, corrupt or impossible.
        ChatError: its tokenizer or template is.
    """
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ValueError(f"dtype: must be one of {', '.join(DTYPES)}, got {dtype!r}")
        dtype = DTYPES[dtype]
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device: {device!s} cannot be used ({reason})") from None
    require_quantization(quantization)
    if quantization is not None and device.type != "cpu":
        raise ValueError(f"quantization: {quantization} needs the CPU, got device {device!s}")
    return Assistant.from_folder(
        find_model(model, revision=revision),
        device=device,
        dtype=dtype,
        variant=variant,
        quantization=quantization,
    )
