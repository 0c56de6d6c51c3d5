"""The model with everything around it: ask a recording, get an answer."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from .audio.loading import MAX_SECONDS
from .audio.recording import Recording
from .audio.windows import SAMPLE_RATE
from .cache import cache_root
from .chat import ChatTemplate, Message, Tokenizer, Variant, build_prompt
from .chat.growing import growing
from .chat.messages import AudioSource, as_messages
from .chat.variants import detect_variant, get_variant, template_of
from .engine import WHOLE, DiskCache, Engine, GenerationParams
from .engine.constraint import Constraints
from .engine.disk_cache import MAX_BYTES, require_folder
from .engine.gpu_model import place
from .engine.packed import require_quantization, stored_quantization
from .engine.packed_cache import PackedCache, identity
from .engine.pages import kv_dtype
from .engine.params import require_whole
from .errors import ChatError
from .hub import find_adapter, find_model
from .model import AudioLanguageModel
from .model.adapter import files_of
from .model.checkpoint import read_json
from .model.device import usable_device
from .ops import runtime
from .reply import Answer, Piece, Reply, ReplyWriter, Usage

__all__ = ["Assistant", "Piece", "Reply", "Usage", "load_model"]

Conversation = str | Message | Iterable[Message | Mapping[str, Any]]

READING = ("max_seconds", "truncate", "partial")
AT_ONCE = 64  # conversations whose audio is in memory
BEGUN = 4  # of these between two steps, since nobody is answered while their beginnings are decoded
LEAST_TIMEOUT = 1e-6  # of what is late before it begins
DRAFTED = 4  # tokens that a draft model guesses where nobody says how many
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Assistant:
    """A model that answers questions about recordings; ``afnext.load`` makes one.

    Attributes:
        net: the network, a ``torch.nn.Module``.
        tokenizer, template, variant: how conversations become tokens.

    Safe to call from several threads at once: what they ask is answered together.
    """

    def __init__(
        self,
        net: AudioLanguageModel,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        variant: Variant,
        *,
        quantization: str | None = None,
        kv_cache_dtype: str | None = None,
        draft: AudioLanguageModel | None = None,
        cache: PackedCache | None = None,
        disk_cache: DiskCache | None = None,
        **limits: int,
    ) -> None:
        self.net = net.eval()
        self.tokenizer = tokenizer
        self.template = template
        self.variant = variant
        if len(tokenizer.eos_ids) == 0:
            raise ValueError("tokenizer: no token ends an answer (eos_token)")
        self.engine = Engine(
            net, sorted(tokenizer.eos_ids), quantization=quantization, cache=cache,
            kv_cache_dtype=kv_cache_dtype, draft=None if draft is None else draft.eval(),
            disk_cache=disk_cache, **limits,
        )  # fmt: skip
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
        kv_cache_dtype: str | None = None,
        draft: Path | None = None,
        adapter: Path | None = None,
        disk_cache: str | Path | None = None,
        disk_cache_bytes: int | None = None,
        **limits: int,
    ) -> Assistant:
        """Read a model folder; see ``afnext.load``. ``limits`` are the engine's."""
        config = read_json(folder / "config.json") or {}
        chosen = get_variant(variant) if variant else detect_variant(folder, config)
        device = torch.device(device)
        on_cpu = device.type == "cpu"
        # To be quantised, weights go to a GPU one after another, from where they lie in their file.
        read_on = torch.device("cpu") if quantization else device
        # The integers that a folder holds are multiplied by as they are; on a GPU, the decoder's.
        on_gpu = device.type == "cuda" and runtime.has_cuda()
        alone = "language_model." if on_gpu else on_cpu
        net = AudioLanguageModel.from_pretrained(
            folder, dtype=dtype, device=read_on, integers_alone=alone, adapter=adapter
        )
        if (stored := stored_quantization(net)) is not None:
            if quantization not in (None, stored):
                raise ValueError(
                    f"quantization: {folder} holds {stored} weights, cannot be {quantization}"
                )
            if stored == "fp8" and on_cpu:
                raise ValueError(f"device: {folder} holds fp8 weights, which need CUDA, got cpu")
            quantization = stored if on_cpu or on_gpu else quantization
        if not on_cpu and quantization is not None:
            place(net, device)
        tokenizer = Tokenizer.from_folder(folder)
        template = template_of(folder, chosen, tokenizer)
        cache = store = None
        files = sorted(folder.glob("*.safetensors"))
        if adapter is not None:
            files += files_of(adapter)
        # The network's own dtype: the argument may be None, which is the folder's.
        own = net.language_model.lm_head.weight.dtype
        if on_cpu and quantization is not None and (root := cache_root()) is not None:
            cache = PackedCache(files, quantization, own, root)
        drafter = None
        if draft is not None:
            if not Tokenizer.from_folder(draft).agrees_with(tokenizer):
                raise ValueError(f"draft: {draft} has another tokenizer than {folder}")
            drafter = AudioLanguageModel.from_pretrained(
                draft, dtype=own, device=read_on, integers_alone=alone
            )
            if not on_cpu and quantization is not None:
                place(drafter, device)
        if disk_cache is not None:
            # What is computed depends on the config too: rotations, eps, how a device multiplies.
            made = json.dumps(net.config.to_dict(), sort_keys=True)
            held = f"{identity(files)} {own} {quantization} {device.type} {made}"
            most = MAX_BYTES if disk_cache_bytes is None else disk_cache_bytes
            store = DiskCache(disk_cache, held, most)
        return cls(
            net, tokenizer, template, chosen, quantization=quantization, cache=cache,
            kv_cache_dtype=kv_cache_dtype, draft=drafter, disk_cache=store, **limits,
        )  # fmt: skip

    def ask(
        self, audio: AudioSource | Sequence[AudioSource], question: str, **options: Any
    ) -> Reply:
        """Answer ``question`` about one recording or several, given in order.

        Args:
            audio: a path, bytes, an array of 16 kHz samples, a pair (samples, rate), or a list of these.
            question: the text of the turn.
            options: see ``stream``.

        Raises:
            ChatError: the question is empty, or there is no recording (``reply`` takes a question alone);
                else see ``stream``.
        """
        if not isinstance(question, str):
            raise ChatError(f"question: must be a string, got {type(question).__name__}")
        if isinstance(audio, list | tuple) and not audio:
            raise ChatError("audio: holds no recording; reply(question) asks about none")
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

    def reply(self, messages: Conversation, **options: Any) -> Reply:
        """The answer to a conversation; arguments as in ``stream``."""
        for piece in self.stream(messages, **options):
            if piece.reply is not None:
                return piece.reply
        raise RuntimeError("a stream ends with its reply")

    def replies(self, conversations: Iterable[Conversation], **options: Any) -> list[Reply]:
        """The answers to many conversations, in their order, worked on together.

        Args:
            conversations: each one as ``stream`` takes it.
            options: see ``stream``; the same for all.

        Raises:
            AudioError, ChatError, ValueError: as ``stream``, for the first conversation that cannot be
                answered; the others are given up.
        """
        found = {}
        for number, reply in self.each_reply(conversations, **options):
            if isinstance(reply, Exception):
                raise reply
            found[number] = reply
        return [found[number] for number in sorted(found)]

    def each_reply(
        self, conversations: Iterable[Conversation], *, at_once: int = AT_ONCE, **options: Any
    ) -> Iterator[tuple[int, Reply | Exception]]:
        """Each conversation's number with its answer, as they are complete, or with what went wrong.

        Args:
            conversations: as in ``replies``; taken as they are needed, so there may be any number.
            at_once: how many are worked on together, their audio in memory.
            options: see ``stream``; the same for all.

        Raises:
            ValueError: ``at_once`` or an option out of its range.
            TypeError: an unknown option, or one conversation instead of several.
        """
        if isinstance(conversations, str | Message | Mapping):
            kind = type(conversations).__name__
            raise TypeError(f"conversations: must be a list of them, got one {kind}: use reply")
        require_whole("at_once", at_once, 1)
        reading = {n: options.pop(n) for n in READING if n in options}
        params = self._params(options.pop("params", None), options)
        return self._each_reply(enumerate(conversations), at_once, params, reading)

    def _each_reply(
        self,
        waiting: Iterator[tuple[int, Conversation]],
        at_once: int,
        params: GenerationParams,
        reading: Mapping[str, Any],
    ) -> Iterator[tuple[int, Reply | Exception]]:
        answers: dict[int, Answer] = {}
        try:
            while True:
                most = min(at_once, len(answers) + BEGUN)
                while len(answers) < most and (item := next(waiting, None)) is not None:
                    number, conversation = item
                    try:
                        answers[number] = self._begin(conversation, params, **reading)
                    except (ValueError, OSError, MemoryError) as error:
                        yield number, error
                if not answers:
                    return
                # Whole answers, but where somebody has to look for the string that one ends at.
                patience = 0.0 if params.stop else WHOLE
                self.engine.wait([h for a in answers.values() for h in a.wanted], patience)
                for number, answer in list(answers.items()):
                    deque(answer.advance(), maxlen=0)
                    if answer.wanted:
                        continue
                    del answers[number]
                    try:
                        *_, last = answer.finish()
                    except Exception as error:
                        yield number, error
                    else:
                        assert last.reply is not None
                        yield number, last.reply
        finally:
            for answer in answers.values():
                answer.cancel()

    def stream(self, messages: Conversation, **options: Any) -> Iterator[Piece]:
        """Answer a conversation as it is written.

        Args:
            messages: a question, a ``Message``, or a sequence of them (or of chat-completions objects).
            params: how to generate; by default the variant's own settings.
            max_seconds: longest recording that is taken.
            truncate: use the first ``max_seconds`` of a longer one instead of refusing it.
            partial: use what precedes the damage in a broken file, with an ``AudioWarning``, instead of
                refusing it.
            options: fields of ``GenerationParams`` to change: max_tokens, temperature, top_k, top_p,
                min_p, repetition_penalty, seed, stop, n, logprobs, timeout, speculate; json_schema, choice or
                regex.

        Returns:
            An iterator of pieces; the last one holds the whole ``Reply``. Closing it early stops the
            work and frees the cache. A file longer than a minute is decoded while its beginning is
            encoded and read: what is wrong behind the first minute is raised by the iterator.

        Raises:
            AudioError: a recording that cannot be used.
            ChatError: a conversation that cannot be rendered, or is too long.
            ValueError: an option out of its range.
        """
        return self._answer(messages, options).pieces()

    def start(self, messages: Conversation, **options: Any) -> Answer:
        """As ``stream``, for callers that give an answer up from another thread, by its ``cancel``."""
        return self._answer(messages, options)

    def astream(self, messages: Conversation, **options: Any) -> AsyncIterator[Piece]:
        """As ``stream``, for ``async for``: recordings are opened in a thread, all else takes none."""

        async def pieces() -> AsyncIterator[Piece]:
            # A thread of its own: slow sources could take all of asyncio's.
            opener = ThreadPoolExecutor(1, "afnext-opener")
            work = partial(copy_context().run, self._answer, messages, options)
            try:
                answer = await asyncio.get_running_loop().run_in_executor(opener, work)
            finally:
                opener.shutdown(wait=False)
            async for piece in answer.apieces():
                yield piece

        return pieces()

    def _answer(self, messages: Conversation, options: Mapping[str, Any]) -> Answer:
        options = dict(options)
        reading = {n: options.pop(n) for n in READING if n in options}
        return self._begin(messages, self._params(options.pop("params", None), options), **reading)

    def _begin(
        self,
        messages: Conversation,
        params: GenerationParams,
        *,
        max_seconds: float = MAX_SECONDS,
        truncate: bool = False,
        partial: bool = False,
    ) -> Answer:
        conversation = as_messages(messages)
        clock = perf_counter()
        with ExitStack() as opened:  # what is refused leaves no file open
            recordings = []
            for index, source in enumerate(s for m in conversation for s in m.audio):
                recordings.append(
                    self._recording(
                        source, recording=index, max_seconds=max_seconds, truncate=truncate,
                        partial=partial,
                    )
                )  # fmt: skip
                opened.callback(recordings[-1].close)
            decoding = perf_counter() - clock
            if params.timeout is not None:
                params = replace(params, timeout=max(LEAST_TIMEOUT, params.timeout - decoding))
            answer = self._submitted(conversation, recordings, params, decoding)
            opened.pop_all()  # whoever reads them closes them
        return answer

    def _submitted(
        self,
        conversation: Sequence[Message],
        recordings: Sequence[Recording],
        params: GenerationParams,
        decoding: float,
    ) -> Answer:
        longest, taker = self.engine.max_context - 1, self.engine.taker
        prompt = build_prompt(
            conversation,
            [r.first for r in recordings],
            self.tokenizer,
            self.template,
            max_tokens=longest,
            taker=taker,
        )
        tail = self.tokenizer.decode(prompt.ids[-4:], skip_special=False)
        opened = tail.rstrip().endswith("<think>")
        if opened and params.grammar is not None:
            raise ChatError(
                f"{params.grammar[0]}: this model's template has every answer begin with thinking"
            )
        known = growing(prompt, recordings, longest, taker)
        plain = replace(params, stop=())  # which the writer looks for
        handle = self.engine.submit(known.ids, known.windows, plain, known.more, known.expected)
        samples = [
            (h, ReplyWriter(self.tokenizer, params.stop, recordings, opened, decoding))
            for h in handle.samples
        ]
        return Answer(self.engine, samples)

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
            if self.engine.draft is not None:
                params = replace(params, speculate=DRAFTED)
        params = replace(params, **options)
        if params.grammar is not None:
            params = replace(params, constraint=self._constraints.compile(*params.grammar))
        return params

    def _recording(self, source: AudioSource, **options: Any) -> Recording:
        rate: int | None = None
        if isinstance(source, tuple):
            source, rate = source
        elif hasattr(source, "shape"):
            rate = SAMPLE_RATE
        return Recording(source, sample_rate=rate, **options)


def load_model(
    model: str | Path = "nano",
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantization: str | None = None,
    kv_cache_dtype: str | None = None,
    draft: str | Path | None = None,
    adapter: str | Path | None = None,
    variant: str | None = None,
    revision: str | None = None,
    disk_cache: str | Path | None = None,
    disk_cache_bytes: int | None = None,
    cache_bytes: int | None = None,
    audio_cache_bytes: int | None = None,
    max_context: int | None = None,
    max_running: int | None = None,
    max_step_tokens: int | None = None,
) -> Assistant:
    """Load a model to talk to.

    Args:
        model: "nano" (comes with afnext), a folder in transformers' ``musicflamingo`` or
            ``audioflamingo3`` layout, or a Hugging Face id.
        device: "cpu", "cuda", ...; by default CUDA where there is one, else the CPU.
        dtype: "float32" or "bfloat16" (or torch's); by default the folder's own on a GPU, and on a CPU
            float32 where the folder's is.
        quantization: "int8", "int4" or on CUDA "fp8": products read weights of so many bits, quantised as
            they are loaded; "int4" keeps the head in 8. On a CPU the encoder and the adaptor have 8 bits
            then, on CUDA they keep ``dtype``, as by default all weights do.
        kv_cache_dtype: "int8", or on CUDA "fp8": keys and values are kept in 8 bits, so that half of
            bfloat16's memory holds as long a recording. By default they keep ``dtype``.
        draft: a smaller model with the same tokenizer, named as ``model``: it guesses ``speculate`` tokens (4
            unless given) that ``model`` checks at once. Answers stay the same.
        adapter: a folder with a LoRA adapter in PEFT's layout (``afnext train`` writes one under
            ``adapter``), or a Hugging Face id of one: merged into the weights, which then take memory of
            their own. ``convert`` writes what comes of it once.
        variant: "instruct", "think", "captioner", "music-flamingo", "audio-flamingo-3" or "nano"; by
            default what the folder's config and name say.
        revision: branch, tag or commit of a Hugging Face id.
        disk_cache: folder where encoded recordings, and the keys and values of prompts about them, are kept,
            so that another run need not compute them again; those not used for longest go when it holds
            more than ``disk_cache_bytes``, 16 GiB unless given.
        cache_bytes: memory for keys and values, of what runs and of what may be asked about again; see
            ``Engine``.
        audio_cache_bytes: memory for encoded recordings that may be asked about again, 512 MiB unless given.
        max_context: most tokens of a prompt and its answer together; by default the model's.
        max_running: answers that share a step, 64 unless given.
        max_step_tokens: of one step, 2,048 unless given: prompts beyond that are read in several, between
            which others go on.

    Raises:
        CheckpointError: the folder is missing, incomplete, corrupt or impossible, or the adapter is, or does
            not fit the model.
        ChatError: its tokenizer or template is.
        ValueError: an argument that cannot be, or a ``draft`` with another tokenizer.
    """
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ValueError(f"dtype: must be one of {', '.join(DTYPES)}, got {dtype!r}")
        dtype = DTYPES[dtype]
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = usable_device(device)
    require_quantization(quantization, device)
    # Refused before the weights are read.
    kv_dtype(kv_cache_dtype, torch.float32, device)
    if disk_cache is not None:
        require_folder(disk_cache)
    elif disk_cache_bytes is not None:
        raise ValueError("disk_cache_bytes: goes with disk_cache, which is not given")
    if disk_cache_bytes is not None:
        require_whole("disk_cache_bytes", disk_cache_bytes, 0)
    limits = {
        "cache_bytes": cache_bytes, "audio_cache_bytes": audio_cache_bytes, "max_context": max_context,
        "max_running": max_running, "max_step_tokens": max_step_tokens,
    }  # fmt: skip
    return Assistant.from_folder(
        find_model(model, revision=revision),
        device=device,
        dtype=dtype,
        variant=variant,
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        draft=None if draft is None else find_model(draft),
        adapter=None if adapter is None else find_adapter(adapter),
        disk_cache=disk_cache,
        disk_cache_bytes=disk_cache_bytes,
        **{name: value for name, value in limits.items() if value is not None},
    )
