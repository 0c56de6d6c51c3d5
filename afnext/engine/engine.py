"""One request at a time: encode, prefill, decode, over a paged cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch

from afnext.audio.windows import AudioWindow
from afnext.model import AudioLanguageModel

from .packed_cache import PackedCache
from .pages import PagePool
from .pages import Sequence as CachedSequence
from .params import GenerationParams
from .runner import Runner
from .sampler import Sampler

PAGE_SIZE = 32


@dataclass(slots=True)
class Timings:
    """Where the time of one request went, in seconds.

    Attributes:
        decode_audio: reading, resampling and cutting the recordings.
        mel: log-mel features.
        encode: encoder and adaptor, with the prompt's embeddings.
        prefill: the prompt through the decoder.
        first_token: from the start of the request to its first token, audio decoding included.
        generate: from the first token to the last.
        total: the whole request.
        tokens_per_second: of the decode steps after the first token; 0 where there were none.
        gigabytes_per_second: weights and cache read by those steps, over their time.
    """

    decode_audio: float = 0.0
    mel: float = 0.0
    encode: float = 0.0
    prefill: float = 0.0
    first_token: float = 0.0
    generate: float = 0.0
    total: float = 0.0
    tokens_per_second: float = 0.0
    gigabytes_per_second: float = 0.0


@dataclass(slots=True)
class Generation:
    """One request in progress; what it holds when the iterator ends is final.

    Attributes:
        tokens: generated so far, the end token not included.
        stopped: "end" (the model ended its turn), "length", or "" while running or when closed early.
    """

    prompt_tokens: int
    audio_tokens: int
    tokens: list[int] = field(default_factory=list)
    stopped: str = ""
    timings: Timings = field(default_factory=Timings)


class Engine:
    """Generates text for prompts of one model.

    Args:
        net: the model, in eval mode.
        eos: token ids that end an answer.
        max_context: most tokens of prompt and answer together; by default the model's.
        quantization, cache: how the weights are stored; see ``Runner``.

    Not safe to call from several threads at once.
    """

    def __init__(
        self,
        net: AudioLanguageModel,
        eos: Sequence[int],
        *,
        max_context: int | None = None,
        quantization: str | None = None,
        cache: PackedCache | None = None,
    ) -> None:
        self.runner = Runner(net, quantization, cache)
        self.eos = frozenset(eos)
        self.max_context = max_context or net.config.text.max_position_embeddings
        self._pool: PagePool | None = None

    def generate(
        self,
        ids: Sequence[int],
        windows: Sequence[AudioWindow] = (),
        params: GenerationParams | None = None,
    ) -> tuple[Generation, Iterator[int]]:
        """Start a request.

        Args:
            ids: the prompt, with one ``<sound>`` id for each audio token.
            windows: the prompt's audio, in the order of its placeholders.
            params: how to choose and when to stop.

        Returns:
            The request's record and an iterator over new tokens, which does the work as it is
            consumed. Closing the iterator frees the cache.

        Raises:
            ValueError: an empty prompt, one with its answer too long for the model, or one whose
                placeholders do not match its audio.
        """
        params = params or GenerationParams()
        if not ids:
            raise ValueError("ids: the prompt is empty")
        if len(ids) >= self.max_context:
            raise ValueError(
                f"the prompt has {len(ids)} tokens, the model takes {self.max_context} with its "
                "answer: shorten the text or the audio"
            )
        audio_tokens = sum(w.num_tokens for w in windows)
        record = Generation(prompt_tokens=len(ids), audio_tokens=audio_tokens)
        return record, self._run(list(ids), list(windows), params, record)

    def _run(
        self,
        ids: list[int],
        windows: list[AudioWindow],
        params: GenerationParams,
        record: Generation,
    ) -> Iterator[int]:
        room = min(params.max_tokens, self.max_context - len(ids))
        started = perf_counter()
        sampler = Sampler(params, ids, self.runner.net.config.text.vocab_size)
        sequence = self._sequence(len(ids) + room)
        try:
            logits = self._prefill(ids, windows, sequence, record.timings)
            first = perf_counter()
            record.timings.first_token = first - started
            for step in range(room):
                token = sampler(logits)
                if token in self.eos:
                    record.stopped = "end"
                    break
                record.tokens.append(token)
                self._measure(record, first, started)
                yield token
                if step + 1 < room:
                    with torch.inference_mode():
                        logits = self.runner.decode(token, sequence)
            else:
                record.stopped = "length"
            self._measure(record, first, started)
        finally:
            sequence.release()

    @torch.inference_mode()
    def _prefill(
        self,
        ids: list[int],
        windows: list[AudioWindow],
        sequence: CachedSequence,
        timings: Timings,
    ) -> torch.Tensor:
        self.runner.refresh()
        clock = perf_counter()
        audio = self.runner.mel(windows) if windows else None
        timings.mel = perf_counter() - clock
        clock = perf_counter()
        embeddings = self.runner.embed(torch.tensor(ids), audio)
        timings.encode = perf_counter() - clock
        clock = perf_counter()
        logits = self.runner.prefill(embeddings, sequence)
        timings.prefill = perf_counter() - clock
        return logits

    def _sequence(self, capacity: int) -> CachedSequence:
        pages = -(-capacity // PAGE_SIZE)
        if self._pool is None or self._pool.free_pages < pages:
            self._pool = None  # the old one goes before the new one comes
            self._pool = self.runner.new_pool(capacity, PAGE_SIZE)
        return CachedSequence(self._pool, capacity)

    def _measure(self, record: Generation, first: float, started: float) -> None:
        now, timings = perf_counter(), record.timings
        timings.generate, timings.total = now - first, now - started
        steps = len(record.tokens) - (0 if record.stopped == "end" else 1)
        if steps <= 0 or timings.generate <= 0:
            return
        timings.tokens_per_second = steps / timings.generate
        text, size = self.runner.net.config.text, self.runner.dtype.itemsize
        cache = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * size
        context = record.prompt_tokens + len(record.tokens) / 2
        read = self.runner.bytes_per_token + cache * context
        timings.gigabytes_per_second = read * timings.tokens_per_second / 1e9
