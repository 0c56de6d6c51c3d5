"""Answers of a model in the making, for somebody to read: to held-out questions, or to those of training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

from afnext.audio.windows import AudioWindow
from afnext.errors import AfnextError
from afnext.evaluation.generate import Listener, Request
from afnext.training.data.conversations import Sound
from afnext.training.data.sources import Source

SAMPLES = 24
LEARNT = (
    "These are records of training: the model has learnt from these answers. How it answers about other "
    "recordings they do not tell."
)


def write_samples(
    folder: Path,
    sources: Mapping[str, Source],
    path: Path,
    longest: float,
    held_out: bool = True,
    count: int = SAMPLES,
) -> None:
    """Ask the model of ``folder`` questions about recordings of at most ``longest`` seconds, each source's in
    turn; ``path`` becomes a Markdown table of questions, answers and truths, which says so where they are not
    ``held_out``. What cannot be read is left out; of nothing there is no table.
    """
    asked = list(islice(_questions(sources, longest), count))
    if not asked:
        return
    where = {sound: source for source, request, _ in asked for sound in request.sounds}

    def windows(sound: str) -> Sequence[AudioWindow]:
        return where[sound].windows(sound.partition("|")[2])

    requests = [request for _, request, _ in asked]
    answers = dict(Listener(folder, windows).answers(requests))
    lines = [] if held_out else [LEARNT, ""]
    lines += ["| recording | question | answer | truth |", "|-|-|-|-|"]
    for number, (_, request, truth) in enumerate(asked):
        cells = (" + ".join(request.sounds), request.texts[-1], answers[number], truth)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


_Asked = tuple[Source, Request, str]


def _questions(sources: Mapping[str, Source], longest: float) -> Iterator[_Asked]:
    """The first question of a conversation, of every source in turn, spread over its recordings."""

    def of(name: str, source: Source) -> Iterator[_Asked]:
        entries = source.entries.up_to(longest)
        for number, entry in enumerate(entries[:: max(1, len(entries) // SAMPLES)]):
            with suppress(AfnextError):  # what is broken is counted where it is drawn
                (item,) = source.conversations(entry, [number % len(entry.records)])
                question, answer = item.turns[:2]
                if question.role != "user":
                    continue
                heard = [part.path for part in question.parts if isinstance(part, Sound)]
                for sound in heard:
                    source.windows(sound)
                sounds = tuple(f"{name}|{sound}" for sound in heard)
                yield source, Request(sounds, (question.text,)), answer.text

    waiting = [of(name, source) for name, source in sources.items()]
    while waiting:
        for one in list(waiting):
            try:
                yield next(one)
            except StopIteration:
                waiting.remove(one)


def _cell(text: str) -> str:
    return "<br>".join(text.replace("|", "\\|").splitlines())  # whatever a model ends lines with
