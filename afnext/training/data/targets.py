"""What each audio token of a recording is of, from its labels: the targets of auxiliary losses."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer
from torch import Tensor

from afnext.audio.windows import TOKEN_SECONDS, WINDOW_TOKENS
from afnext.training.data.tokenizer import TIMES
from afnext.training.synthesis.music import INSTRUMENTS, Note
from afnext.training.synthesis.scenes import Scene
from afnext.training.synthesis.sounds import CLASSES
from afnext.training.tasks import timeline
from afnext.training.tasks.speech import numbered, transcript

EVENTS = (*CLASSES, "speech", "music")
NOTES = tuple(Note(pitch, 0.0, 0.0).name for pitch in range(40, 89))  # all that instruments play
SPEAKERS = tuple(f"Speaker {i}" for i in (1, 2, 3))
BEGIN, END = "<t>", "</t>"
LABELS = (*EVENTS, *(i.name for i in INSTRUMENTS), *NOTES, *SPEAKERS, BEGIN, END)
"""What can be active: sounds, speech and music, instruments, notes, speakers by who speaks first; and where
any of these but notes begins and ends, by the tokens that open and close times in answers."""
ONSETS = (*EVENTS, "note", "turn")
"""What has a beginning of its own: also any note, any speaker's turn."""
ONSET_SHAPE = ((0, 1.0), (-1, 0.3), (1, 0.3))
"""Targets of the onset's token and of its neighbours."""
TENS = 180
"""Of seconds in half an hour: what stands before a time's last two digits."""
_PLACE = {name: i for i, name in enumerate(LABELS)}
_ONSET = {name: i for i, name in enumerate(ONSETS)}


def frame_targets(scene: Scene, tokens: int) -> tuple[Tensor, Tensor]:
    """Activity float32 ``[tokens, labels]`` and onsets float32 ``[tokens, onsets]``, in 0..1.

    A token that something covers in part has that part as its target. Who spoke first is known within a
    window alone: longer recordings have no speakers.
    """
    active = torch.zeros(tokens, len(LABELS))
    onsets = torch.zeros(tokens, len(ONSETS))
    starts = torch.arange(tokens) * TOKEN_SECONDS

    def cover(name: str, onset: float, offset: float) -> None:
        part = (starts + TOKEN_SECONDS).clamp(max=offset) - starts.clamp(min=onset)
        column = active[:, _PLACE[name]]
        torch.maximum(column, (part / TOKEN_SECONDS).clamp(0, 1), out=column)

    def mark(name: str, moment: float) -> None:
        at = min(int(moment / TOKEN_SECONDS), tokens - 1)
        active[at, _PLACE[name]] = 1.0

    def begin(name: str, onset: float) -> None:
        for shift, value in ONSET_SHAPE:
            at = int(onset / TOKEN_SECONDS) + shift
            if 0 <= at < tokens:
                onsets[at, _ONSET[name]] = max(value, float(onsets[at, _ONSET[name]]))

    for event in timeline(scene):
        cover(event.label, event.onset, event.offset)
        begin(event.label, event.onset)
        mark(BEGIN, event.onset)
        mark(END, event.offset)
    names = numbered(scene.utterances)
    for utterance in scene.utterances:
        if tokens <= WINDOW_TOKENS and (name := names[utterance.speaker]) in _PLACE:
            cover(name, utterance.onset, utterance.offset)
        begin("turn", utterance.onset)
        mark(BEGIN, utterance.onset)
        mark(END, utterance.offset)
    for melody in scene.melodies:
        cover(melody.instrument, melody.onset, melody.offset)
        for note in melody.notes:
            if note.name in _PLACE:
                cover(note.name, note.onset, note.offset)
            begin("note", note.onset)
    return active, onsets


@dataclass(frozen=True)
class Targets:
    """Of a batch's recordings, in the order of its audio tokens.

    Attributes:
        labelled: int64 ``[L]``, the audio tokens of recordings that have labels.
        active, onsets: float32 ``[L, ..]``, see :func:`frame_targets`.
        seconds: float32 ``[A]``, the middle of every audio token in its recording.
        spoken: first audio token and their number of each window in which something is said.
        spelling: ids of what is said in each.
    """

    labelled: Tensor
    active: Tensor
    onsets: Tensor
    seconds: Tensor
    spoken: tuple[tuple[int, int], ...]
    spelling: tuple[tuple[int, ...], ...]

    def to(self, device: torch.device) -> Targets:
        """The same targets on ``device``."""
        names = ("labelled", "active", "onsets", "seconds")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


class Words:
    """Ids that the losses need: the pieces of each label, the times, and what spells a text.

    Attributes:
        times: int64 ``[100]``, the ids of "0.0" to "9.9"; empty where the tokenizer has no such tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        longest = 4
        ids = [tokenizer.encode(name, add_special_tokens=False).ids[:longest] for name in LABELS]
        self.label_ids = torch.tensor([(i * longest)[:longest] for i in ids])
        tens = [tokenizer.encode(str(n), add_special_tokens=False).ids for n in range(TENS)]
        self.ten_ids = torch.tensor([(ids * 3)[:3] for ids in tens])
        weights = [[0.8**i if i < len(ids) else 0.0 for i in range(3)] for ids in tens]
        self.ten_weights = torch.tensor(weights)
        times = [tokenizer.token_to_id(t) for t in TIMES]
        self.times = torch.tensor([id for id in times if id is not None], dtype=torch.int64)
        self.blank = int(tokenizer.token_to_id("<|endoftext|>") or 0)

    def to(self, device: torch.device) -> Words:
        """The same ids on ``device``."""
        moved = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def spell(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def targets(self, scenes: Sequence[Scene | None], tokens: Sequence[int]) -> Targets:
        """Of recordings with their number of audio tokens; None has no labels."""
        labelled: list[Tensor] = []
        active: list[Tensor] = []
        onsets: list[Tensor] = []
        spoken: list[tuple[int, int]] = []
        spelling: list[tuple[int, ...]] = []
        first = 0
        for scene, count in zip(scenes, tokens, strict=True):
            if scene is not None and count:
                labelled.append(torch.arange(first, first + count))
                sounding, beginning = frame_targets(scene, count)
                active.append(sounding)
                onsets.append(beginning)
                text = self.spell(" " + transcript(scene.utterances)) if scene.utterances else ()
                if 0 < len(text) <= count // 2:
                    spoken.append((first, count))
                    spelling.append(text)
            first += count
        middle = [(torch.arange(n) + 0.5) * TOKEN_SECONDS for n in tokens]
        none = torch.zeros(0)
        return Targets(
            torch.cat(labelled) if labelled else none.long(),
            torch.cat(active) if active else none.view(0, len(LABELS)),
            torch.cat(onsets) if onsets else none.view(0, len(ONSETS)),
            torch.cat([none, *middle]), tuple(spoken), tuple(spelling),
        )  # fmt: skip
