"""Answers of a model in the making to held-out questions, for somebody to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from afnext.audio.windows import AudioWindow
from afnext.evaluation.generate import Listener, Request
from afnext.training.data.sources import Source

SAMPLES = 24


def write_samples(
    folder: Path, sources: Mapping[str, Source], path: Path, longest: float, count: int = SAMPLES
) -> None:
    """Ask the model of ``folder`` questions about recordings of at most ``longest`` seconds, each source's in
    turn; ``path`` becomes a Markdown table of questions, answers and truths.
    """
    asked = list(islice(_questions(sources, longest), count))
    where = {sound: source for source, request, _ in asked for sound in request.sounds}

    def windows(sound: str) -> Sequence[AudioWindow]:
        return where[sound].windows(sound.partition("|")[2])

    requests = [request for _, request, _ in asked]
    answers = dict(Listener(folder, windows).answers(requests))
    lines = ["| recording | question | answer | truth |", "|-|-|-|-|"]
    for number, (_, request, truth) in enumerate(asked):
        cells = (" + ".join(request.sounds), request.texts[-1], answers[number], truth)
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


_Asked = tuple[Source, Request, str]


def _questions(sources: Mapping[str, Source], longest: float) -> Iterator[_Asked]:
    """Conversations of one question each, of every source in turn, spread over its recordings."""

    def of(name: str, source: Source) -> Iterator[_Asked]:
        entries = [entry for entry in source.entries if entry.seconds <= longest]
        for number, entry in enumerate(entries[:: max(1, len(entries) // SAMPLES)]):
            (item,) = source.conversations(entry, [number % len(entry.records)])
            question, answer = item.turns[0], item.turns[1]
            sounds = tuple(f"{name}|{sound}" for sound in item.sounds)
            yield source, Request(sounds, (question.text,)), answer.text

    waiting = [of(name, source) for name, source in sources.items()]
    while waiting:
        for one in list(waiting):
            try:
                yield next(one)
            except StopIteration:
                waiting.remove(one)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
