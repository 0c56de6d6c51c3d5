"""Greedy answers to many questions at once, without penalties."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from afnext.audio.windows import AudioWindow
from afnext.chat import Message, Tokenizer, build_prompt
from afnext.chat.files import read_json
from afnext.chat.variants import detect_variant, template_of
from afnext.engine import WHOLE, Engine, GenerationParams, Handle
from afnext.model import AudioLanguageModel

ROWS = 96  # answers at once


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


class Listener:
    """A model folder that answers questions in batches, on the CPU.

    Questions about the same recordings are asked together: the engine reads what they share once.

    Args:
        folder: of the model.
        windows: a recording's windows by its name.
        dtype, quantization: as ``afnext.load`` takes them; by default the weights are as the folder has them.
        engine: other arguments of ``Engine``.
    """

    def __init__(
        self,
        folder: str | Path,
        windows: Callable[[str], Sequence[AudioWindow]],
        dtype: torch.dtype | None = None,
        quantization: str | None = None,
        **engine: Any,
    ) -> None:
        folder = Path(folder)
        self.net = AudioLanguageModel.from_pretrained(folder, dtype=dtype)
        self.tokenizer = Tokenizer.from_folder(folder)
        variant = detect_variant(folder, read_json(folder / "config.json"))
        self.template = template_of(folder, variant, self.tokenizer)
        self.windows = windows
        eos = sorted(self.tokenizer.eos_ids)
        engine = {"max_running": ROWS, **engine}
        self.engine = Engine(self.net, eos, quantization=quantization, **engine)

    def answers(self, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """Each request's number with its answer, as they are complete; thinking included.

        Raises:
            AudioError, ChatError: a recording or a text cannot be used.
        """
        waiting = self._submitted(requests)
        asked: dict[int, Handle] = {}
        try:
            while True:
                # As many wait as run, so that the next ones are at hand.
                asked.update(islice(waiting, 2 * self.engine.max_running - len(asked)))
                if not asked:
                    return
                self.engine.wait(list(asked.values()), WHOLE)
                for number, handle in list(asked.items()):
                    handle.take()
                    if handle.finished:
                        tokens = asked.pop(number).result().tokens
                        yield number, self.tokenizer.decode(tokens).strip()  # as ``ask`` has it
        finally:
            for handle in asked.values():
                handle.cancel()

    def _submitted(self, requests: Sequence[Request]) -> Iterator[tuple[int, Handle]]:
        """Requests as they are asked for, those about the same recordings one after another."""
        groups: dict[tuple[str, ...], list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(request.sounds, []).append(number)
        for sounds, numbers in groups.items():
            heard = [list(self.windows(name)) for name in sounds]
            for number in numbers:
                request = requests[number]
                prompt = build_prompt(_messages(request), heard, self.tokenizer, self.template)
                params = GenerationParams(max_tokens=request.longest)
                yield number, self.engine.submit(prompt.ids, prompt.windows, params)


def _messages(request: Request) -> list[Message]:
    roles = ("user", "assistant")
    first, *others = request.texts
    opening = Message("user", first, list(request.sounds))
    return [opening, *(Message(roles[i % 2], text) for i, text in enumerate(others, 1))]
