"""What is asked about held-out recordings: each question with what an answer to it scores."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import yaml

from afnext.chat import parse_timestamps
from afnext.evaluation import answers
from afnext.evaluation.answers import Judge
from afnext.evaluation.events import event_scores, parse_events
from afnext.evaluation.notes import note_scores, parse_notes
from afnext.evaluation.score import Scores, right
from afnext.evaluation.turns import attributed_scores, parse_turns, true_turns, turn_scores
from afnext.evaluation.words import timed_scores, transcript_scores
from afnext.training import tasks
from afnext.training.synthesis.scenes import Scene
from afnext.training.tasks import Exchange, several, sounds, speech
from afnext.training.tasks.exchange import ask
from afnext.training.tasks.lexicon import UNHEARD
from afnext.training.tasks.refusal import ANSWER, refusal

SEARCH = 1.0
"""In minutes of recording, what is searched is found if its onset is said within this many seconds."""
SEARCHES = 2  # in a recording
TRIES = 40  # to draw an exchange of the wanted sort
LONGEST = {
    **dict.fromkeys(("transcribe", "transcribe_timed", "attribute"), 400),
    **dict.fromkeys(("diarize", "list", "list_of", "when_each", "notes", "caption"), 200),
}
"""Tokens of an answer, at most, where that is more than ``SHORT``: about twice what true answers have."""
SHORT = 96
ORDERS = (
    ("neighbour", "after"), ("neighbour", "before"), ("pair", "which_first"), ("pair", "is_before"),
)  # fmt: skip
FOLLOW_UPS = ("presence", "when", "count", "first", "last")

UNSEEN: dict[str, list[str]] = yaml.safe_load(
    Path(__file__).with_name("unseen.yaml").read_text(encoding="utf-8")
)
"""Phrasings that training never uses."""


@dataclass(frozen=True, eq=False)
class Question:
    """A question about one recording or several.

    Attributes:
        kind: its row among the figures.
        family: answers are dealt for chance among the questions of a family.
        sounds: keys of the recordings, in the order in which they are heard.
        text: what is asked.
        judge: what an answer scores.
        longest: tokens that the answer may have.
        before: the question that opens the conversation, if this one goes on with it.
    """

    kind: str
    family: str
    sounds: tuple[str, ...]
    text: str
    judge: Judge
    longest: int = SHORT
    before: Question | None = None


@dataclass(frozen=True)
class Asker:
    """Makes questions about one recording.

    Attributes:
        key: the recording's.
        scene: what is heard in it.
        rng: decides what is asked and how it is worded.
        suffix: of the kinds, as ``", 12 to 30 s"``.
    """

    key: str
    scene: Scene
    rng: random.Random
    suffix: str = ""

    def draw(
        self, task: str, wanted: Callable[[Exchange], bool] = lambda _: True
    ) -> Exchange | None:
        """A question of training's own kinds, or None where none of the wanted sort fits."""
        for _ in range(TRIES):
            try:
                exchange = tasks.about(self.scene, self.rng, {task: 1.0})
            except ValueError:
                continue  # it does not fit, or its draws were unlucky
            if wanted(exchange):
                return exchange
        return None

    def ask(
        self, task: str, kind: str = "", wanted: Callable[[Exchange], bool] = lambda _: True
    ) -> Iterator[Question]:
        """One question of a kind of task, if there is one; ``kind`` says more than the task's name."""
        if (exchange := self.draw(task, wanted)) is not None:
            yield self.asked(exchange, kind)

    def asked(self, exchange: Exchange, kind: str = "") -> Question:
        """``exchange`` as a question."""
        return self.question(exchange.task, exchange.question, self.judge(exchange), kind)

    def unseen(self, task: str, judge: Judge, kind: str = "", label: str = "") -> Question:
        """A question in words that training never uses."""
        phrasing = self.rng.choice(UNSEEN[task])
        text = ask(task, "", self.rng, label, phrasing=phrasing).question
        return self.question(task, text, judge, f"{kind}, unseen phrasing".removeprefix(", "))

    def reworded(self, task: str) -> Iterator[Question]:
        """A question of a kind whose answer does not depend on how it is asked, in such words."""
        if (exchange := self.draw(task)) is not None:
            yield self.unseen(task, self.judge(exchange))

    def question(self, task: str, text: str, judge: Judge, kind: str = "") -> Question:
        name = "events" if task == "list" else task
        row = f"{name}, {kind}".removesuffix(", ") + self.suffix
        longest = LONGEST.get(task, SHORT)
        return Question(row, name + self.suffix, (self.key,), text, judge, longest)

    def judge(self, exchange: Exchange) -> Judge:
        """Of answers to a question of training's own kinds."""
        task, scene = exchange.task, self.scene
        if task == "list":
            return self.judge_list()
        if task == "when":
            return answers.when(answers.times(exchange.answer))
        if task == "when_each":
            found = parse_events(exchange.answer)
            return lambda answer: event_scores(found, parse_events(answer))
        if task == "tempo":
            return answers.tempo(scene.melodies[0].tempo)
        if task == "notes":
            played = scene.melodies[0].notes
            return lambda answer: note_scores(played, parse_notes(answer))
        if task == "transcribe" and scene.utterances:
            return lambda answer: transcript_scores(exchange.answer, answer)
        if task == "transcribe_timed":
            said = scene.utterances
            return lambda answer: timed_scores(said, parse_timestamps(answer, "seconds"))
        if task in ("diarize", "attribute"):
            score = turn_scores if task == "diarize" else attributed_scores
            turns = true_turns(scene.utterances)
            return lambda a: score(turns, parse_turns(parse_timestamps(a, "seconds")))
        return answers.judge(task, exchange.answer)

    def judge_list(self) -> Judge:
        events = tasks.timeline(self.scene)
        return lambda answer: event_scores(events, parse_events(answer))


def said_yes(exchange: Exchange) -> bool:
    return exchange.answer == "Yes."


def said_no(exchange: Exchange) -> bool:
    return exchange.answer == "No."


def _is(task: str, exchange: Exchange) -> bool:
    return exchange.task == task


def about_sounds(asker: Asker) -> Iterator[Question]:
    """Lists, presence, times, numbers, order, captions."""
    yield from asker.ask("list")
    yield from asker.ask("presence", "present", said_yes)
    yield from asker.ask("presence", "absent", said_no)
    for task in ("when", "count", "count_of", "first", "last", "at", "caption"):
        yield from asker.ask(task)
    for task, wording in ORDERS:
        yield from asker.ask(task, wanted=partial(_is, wording))
    label = asker.rng.choice(UNHEARD)
    never = ask("presence", "No.", asker.rng, label)
    yield asker.asked(never, "never trained as a sound")
    yield from asker.ask("when_each")


def unseen_phrasings(asker: Asker) -> Iterator[Question]:
    """The commonest kinds in words that training never uses."""
    events, rng = tasks.timeline(asker.scene), asker.rng
    yield asker.unseen("list", asker.judge_list())
    absent = sounds.absent_label(events, rng)
    yield asker.unseen("presence", answers.judge("presence", "No."), "absent", absent)
    if events:
        label = rng.choice(events).label
        onsets = [e.onset for e in events if e.label == label]
        yield asker.unseen("presence", answers.judge("presence", "Yes."), "present", label)
        yield asker.unseen("when", answers.when(onsets), label=label)
    for task in ("count", "first", "last", "caption"):
        yield from asker.reworded(task)


def refusals(asker: Asker) -> Iterator[Question]:
    """Requests to be refused."""
    refused = answers.judge("refusal", ANSWER)
    yield asker.asked(refusal(asker.rng))
    yield asker.unseen("refusal", refused)


def follow_up(asker: Asker) -> Iterator[Question]:
    """A second question in the conversation of a first one, which is not scored again."""
    first, second = (asker.draw(asker.rng.choice(FOLLOW_UPS)) for _ in range(2))
    if first and second:
        asked = asker.asked(second)
        yield replace(
            asked, kind="follow-up", family=f"follow-up {second.task}", before=asker.asked(first)
        )


def about_speech(asker: Asker) -> Iterator[Question]:
    """Transcripts, with times and in words that training never uses."""
    yield from asker.ask("transcribe")
    yield from asker.ask("transcribe_timed")
    if asker.scene.utterances:
        truth = speech.transcript(asker.scene.utterances)
        yield asker.unseen("transcribe", lambda answer: transcript_scores(truth, answer))


def words(asker: Asker) -> Iterator[Question]:
    """What is said among other sounds, if anything."""
    yield from asker.ask("transcribe")


def about_dialogue(asker: Asker) -> Iterator[Question]:
    """Turns, words of each speaker, how many speak, whether anybody interrupts."""
    for task in ("diarize", "attribute", "speakers", "interrupted"):
        yield from asker.ask(task)
    yield from asker.reworded("diarize")


def about_music(asker: Asker) -> Iterator[Question]:
    """Instruments, tempo, loudness, notes."""
    yield from asker.ask("instrument")
    yield from asker.ask("instrument_presence", "present", said_yes)
    yield from asker.ask("instrument_presence", "absent", said_no)
    for task in ("tempo", "loudness", "notes"):
        yield from asker.ask(task)
    if asker.scene.melodies:
        names = dict.fromkeys(m.instrument for m in asker.scene.melodies)
        yield asker.unseen("instrument", answers.judge("instrument", ", ".join(names)))


def search(asker: Asker) -> Iterator[Question]:
    """In a long recording: sounds that occur once, and one that does not occur."""
    events, rng = tasks.timeline(asker.scene), asker.rng
    labels = [e.label for e in events]
    once = [e for e in asker.scene.events if labels.count(e.label) == 1]
    for event in rng.sample(once, min(SEARCHES, len(once))):
        asked = ask("when", "", rng, event.label)
        judge = answers.when([event.onset], SEARCH)
        found = asker.question("when", asked.question, judge)
        yield replace(found, kind="search, present", family="search")
    asked = ask("when", "", rng, sounds.absent_label(events, rng))
    missed = asker.question("when", asked.question, answers.when([]))
    yield replace(missed, kind="search, absent", family="search")
    for each in asker.ask("when_each"):
        yield replace(each, kind="search, several", family="search, several")


def silence(asker: Asker) -> Iterator[Question]:
    """Of nothing at all: nothing is heard. Chance is what answers about other recordings score."""
    nothing = answers.judge("transcribe", "Nothing.")
    listed = ask("list", "", asker.rng).question
    yield asker.question("list", listed, nothing, "silence")
    no_speech = answers.judge("transcribe", speech.transcript(()))
    asked = ask("transcribe", "", asker.rng).question
    yield asker.question("transcribe", asked, no_speech, "silence")
    yield from asker.ask("presence", "silence", said_no)


def about_two(
    keys: tuple[str, str], scenes: tuple[Scene, Scene], rng: random.Random
) -> Iterator[Question]:
    """What two recordings have in common and each one's sounds; nothing where a kind does not fit them."""
    for kind in several.MAKERS:
        if (exchange := _of_two(kind, scenes, rng)) is not None:
            judge = _judge_of_two(exchange)
            yield Question(kind, kind, keys, exchange.question, judge, LONGEST.get(kind, SHORT))


def unseen_about_two(
    keys: tuple[str, str], scenes: tuple[Scene, Scene], rng: random.Random
) -> Iterator[Question]:
    """Which has a sound, and which has more, in words that training never uses."""
    first, second = ({e.label for e in tasks.timeline(scene)} for scene in scenes)
    if apart := sorted(first ^ second):
        label = rng.choice(apart)
        yield _unseen_of_two(keys, "which_has", several.first_if(label in first), rng, label)
    if (exchange := _of_two("more", scenes, rng)) is not None:
        yield _unseen_of_two(keys, "more", exchange.answer, rng)


def _of_two(kind: str, scenes: tuple[Scene, Scene], rng: random.Random) -> Exchange | None:
    first, second = map(tasks.timeline, scenes)
    return several.MAKERS[kind][1](first, second, rng)


def _unseen_of_two(
    keys: tuple[str, str], kind: str, answer: str, rng: random.Random, label: str = ""
) -> Question:
    exchange = ask(kind, answer, rng, label, phrasing=rng.choice(UNSEEN[kind]))
    row = f"{kind}, unseen phrasing"
    return Question(row, row, keys, exchange.question, _judge_of_two(exchange))


def _judge_of_two(exchange: Exchange) -> Judge:
    if exchange.task == "list_of":
        return lambda answer: event_scores(parse_events(exchange.answer), parse_events(answer))
    return answers.judge(exchange.task, exchange.answer)


def pairs(
    recordings: Sequence[tuple[str, Scene]], rng: random.Random
) -> Iterator[tuple[tuple[str, str], tuple[Scene, Scene]]]:
    """Each recording once: pairs with the same classes of sound, and as many with others."""
    left = list(recordings)
    rng.shuffle(left)
    by_classes: dict[frozenset[str], list[tuple[str, Scene]]] = {}
    for item in left:
        by_classes.setdefault(frozenset(e.label for e in item[1].events), []).append(item)
    alike = [
        (a, b)
        for classes, items in by_classes.items() if classes
        for a, b in zip(items[::2], items[1::2], strict=False)
    ]  # fmt: skip
    used = {key for pair in alike for key, _ in pair}
    rest = [item for item in left if item[0] not in used]
    others = list(zip(rest[::2], rest[1::2], strict=False))
    count = min(len(alike), len(others))
    for (one, first), (other, second) in (*alike[:count], *others[:count]):
        yield (one, other), (first, second)


def not_refused(answer: str) -> Scores:
    """Of an answer to any question but those to be refused."""
    return right(not answers.refuses(answer))
