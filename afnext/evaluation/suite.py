"""The whole evaluation: held-out recordings, questions about them, a model folder's answers, figures.

What is asked depends on the recordings alone, so that two models answer the same questions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from afnext.audio.windows import AudioWindow
from afnext.evaluation import held_out
from afnext.evaluation import questions as q
from afnext.evaluation import recordings as others
from afnext.evaluation.card import missed, tables
from afnext.evaluation.generate import Listener, Request
from afnext.evaluation.held_out import SILENCE, HeldOut
from afnext.evaluation.questions import Asker, Question
from afnext.evaluation.score import Answered, figures
from afnext.training.synthesis.scenes import Scene
from afnext.training.tasks.exchange import Plainly

PAIRS = 80

ASKED: dict[str, tuple[str, Sequence[Callable[[Asker], Iterator[Question]]]]] = {
    "sounds": ("", (q.about_sounds, q.unseen_phrasings, q.refusals, q.follow_up)),
    "longer sounds": (", 12 to 30 s", (q.about_sounds,)),
    "mixed": (", with speech and music", (q.about_sounds, q.words)),
    "monologue": ("", (q.about_speech, q.refusals)),
    "monologue of known voices": (", known voices", (q.about_speech,)),
    "dialogue": ("", (q.about_dialogue,)),
    "music": ("", (q.about_music,)),
    "sparse": ("", (q.search,)),
    SILENCE: ("", (q.silence,)),
}
"""By group of recordings: what is added to the names of its kinds, and what is asked."""

TOGETHER: dict[str, tuple[str, ...]] = {
    "counting": ("count", "count_of"),
    "order": ("first", "last", "after", "before", "which_first", "is_before"),
    "two recordings": ("which_has", "same_sounds", "in_both", "more"),
}
"""Rows that are made of others, with the suffixes that these have."""

Progress = Callable[[str, float], None]
"""Is told what is being done, and the share of it that is done."""


def questions(recordings: HeldOut, limit: int | None = None) -> list[Question]:
    """All that is asked, of at most ``limit`` recordings a group."""
    asked: list[Question] = []
    for group, (suffix, makers) in ASKED.items():
        for key, scene in recordings.scenes(group, limit):
            for make in makers:
                # Of its own generator: a new kind of question changes no other.
                rng = Plainly(f"{key}/{make.__name__}")
                asked += make(Asker(key, scene, rng, suffix))
    return asked + _about_pairs(recordings, limit)


def _about_pairs(recordings: HeldOut, limit: int | None) -> list[Question]:
    rng = Plainly("pairs")
    scenes: list[tuple[str, Scene]] = recordings.scenes("brief sounds")
    drawn = list(q.pairs(scenes, rng))
    rng.shuffle(drawn)
    asked: list[Question] = []
    for ask, words in ((q.about_two, rng), (q.unseen_about_two, Plainly("pairs, unseen phrasing"))):
        for keys, pair in drawn[: min(limit or PAIRS, PAIRS)]:
            asked += ask(keys, pair, words)
    return asked


@dataclass(frozen=True)
class Evaluation:
    """A scored model.

    Attributes:
        answers: to every question.
        figures: by kind of question and measure, see ``score.Figure``.
        facts: plain numbers and names: how many questions and recordings, how many of a group at most
            (``limit``; None: all), how long it took.
    """

    answers: Mapping[Question, str]
    figures: Mapping[str, Mapping[str, Mapping[str, Any]]]
    facts: Mapping[str, Any]

    @property
    def notes(self) -> list[str]:
        """What was left out, and what is below its target, each in a line."""
        missing = self.facts["missing_packages"]
        left_out = [f"recordings of these packages are not installed: {', '.join(missing)}"]
        return [*(left_out if missing else []), *missed(self.to_dict())]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: facts and figures."""
        return {**self.facts, "figures": self.figures}

    def save(self, folder: str | Path) -> None:
        """Write ``scores.json``, ``scores.md`` and every answer to ``answers.jsonl``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.json").write_text(json.dumps(self.to_dict(), indent=1) + "\n")
        (folder / "scores.md").write_text(tables(self.to_dict()))
        with (folder / "answers.jsonl").open("w", encoding="utf-8") as file:
            for question, answer in self.answers.items():
                line = {
                    "kind": question.kind, "sounds": question.sounds, "question": question.text,
                    "answer": answer,
                }  # fmt: skip
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def prepare(folder: str | Path, progress: Progress | None = None) -> HeldOut:
    """Have the held-out recordings in ``folder``, as ``held_out.make`` does with all cores."""
    for what, made in held_out.make(folder, os.cpu_count() or 1):
        if made is not None:
            return made
        if progress is not None:
            progress(what, 0.0)
    raise RuntimeError("what is made ends with the recordings")


def evaluate(
    folder: str | Path,
    recordings: HeldOut,
    limit: int | None = None,
    *,
    root: str | Path = "/",
    quantization: str | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Score a model folder on held-out recordings and on installed ones, by greedy answers.

    Args:
        folder: of the model.
        recordings: as :func:`prepare` gives them.
        limit: recordings of each group; by default all.
        root: below which packages have installed their recordings.
        quantization: as ``afnext.load`` takes it.
        progress: is told what is done, and the share of it.
    """
    started = perf_counter()

    def windows(key: str) -> list[AudioWindow]:
        if key.startswith(others.PREFIX):
            return others.windows(key, root)
        return recordings.windows(key)

    listener = Listener(folder, windows, quantization=quantization)
    asked = [*questions(recordings, limit), *others.all_questions(others.installed(root)[:limit])]
    answers = answer(listener, asked, progress)
    taken = perf_counter() - started
    answered = [Answered(a.kind, a.family, "+".join(a.sounds), answers[a], a.judge) for a in asked]
    facts = {
        "model": Path(folder).resolve().name,
        "parameters": sum(p.numel() for p in listener.net.parameters()),
        "questions": len(answers),
        "recordings": len({sound for a in asked for sound in a.sounds}),
        "limit": limit,
        "seconds": round(taken, 1),
        "missing_packages": others.missing_packages(root),
    }
    return Evaluation(answers, scored(answered), facts)


def answer(
    listener: Listener, asked: Sequence[Question], progress: Progress | None = None
) -> dict[Question, str]:
    """Answers by question; a second turn goes on with the model's own answer to the first."""
    opening = [a.before for a in asked if a.before is not None]
    first = [*(a for a in asked if a.before is None), *opening]
    second = [a for a in asked if a.before is not None]
    answers: dict[Question, str] = {}
    total = len(first) + len(second)
    for turn in (first, second):
        requests = [Request(a.sounds, _texts(a, answers), a.longest) for a in turn]
        for number, text in listener.answers(requests):
            answers[turn[number]] = text
            if progress is not None:
                progress("questions", len(answers) / total)
    return answers


def _texts(question: Question, answers: Mapping[Question, str]) -> tuple[str, ...]:
    if question.before is None:
        return (question.text,)
    return (question.before.text, answers[question.before], question.text)


def scored(answered: Sequence[Answered]) -> dict[str, dict[str, dict[str, Any]]]:
    """Figures of each kind, of kinds together, and of answers that should be no refusals."""
    more = list(answered)
    for row, kinds in TOGETHER.items():
        for item in answered:
            name, comma, suffix = item.kind.partition(", ")
            if name in kinds:
                more.append(replace(item, kind=f"{row} (all){comma}{suffix}"))
    more += (
        replace(a, kind="not refused", family="not refused", score=q.not_refused)
        for a in answered if not a.kind.startswith("refusal")
    )  # fmt: skip
    return {
        kind: {measure: figure.to_dict() for measure, figure in measures.items()}
        for kind, measures in figures(more).items()
    }
