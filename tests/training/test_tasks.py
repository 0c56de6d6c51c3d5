"""Questions and answers: each answer is true, by its question alone and truths written by hand."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from afnext.training import tasks
from afnext.training.synthesis.banks import Banks
from afnext.training.synthesis.music import INSTRUMENTS, Melody, Note
from afnext.training.synthesis.scenes import Event, Scene, Utterance, compose
from afnext.training.tasks import TASKS, Exchange, about, about_two, music, sounds, speech
from afnext.training.tasks.exchange import ENDS, LEADS, PHRASINGS, Plainly, ask, pattern, restyle
from afnext.training.tasks.lexicon import ANY_VERB, UNHEARD, WORDS
from afnext.training.tasks.refusal import ANSWER

NONE = np.zeros(0, np.float32)


@dataclass(frozen=True)
class Case:
    """A scene and what is true of it.

    Attributes:
        heard: what sounds, in its order, with the times as they are written.
        caption: in a sentence.
        answers: to what is asked in one way only.
    """

    scene: Scene
    heard: tuple[tuple[str, str], ...]
    caption: str
    answers: Mapping[str, str]

    def labels(self) -> list[str]:
        return [label for label, _ in self.heard]


CASES = {
    "sounds": Case(
        Scene(NONE, (Event("bell", 1.24, 2.5), Event("siren", 2.0, 4.1), Event("bell", 5.0, 5.96),
                     Event("footsteps", 6.5, 8.0))),
        (("bell", "1.2-2.5"), ("siren", "2.0-4.1"), ("bell", "5.0-6.0"), ("footsteps", "6.5-8.0")),
        "A bell rings, while a siren wails, then a bell rings, then footsteps pass.",
        {
            "list": "bell <t>1.2-2.5</t>, siren <t>2.0-4.1</t>, bell <t>5.0-6.0</t>, "
                    "footsteps <t>6.5-8.0</t>.",
            "count": "bell, siren, bell, footsteps: 4.", "first": "bell.", "last": "footsteps.",
            "transcribe": "No speech was recognised.",
        },
    ),
    "nothing": Case(
        Scene(NONE), (), "Nothing happens.",
        {"list": "Nothing.", "count": "0.", "first": "Nothing.", "last": "Nothing.",
         "transcribe": "No speech was recognised."},
    ),
    "talk": Case(
        # Two sentences with a pause of 0.5 s are one stretch of speech; the third begins within the second.
        Scene(
            NONE, (Event("dog", 7.0, 7.8),),
            (Utterance("rosa", "It is half past nine.", 0.5, 2.0),
             Utterance("hugo", "Where is the red cup?", 2.5, 4.0),
             Utterance("rosa", "The cup is under the lamp.", 3.7, 5.25),
             Utterance("hugo", "We went to the bank.", 9.0, 10.04)),
        ),
        (("speech", "0.5-5.2"), ("dog", "7.0-7.8"), ("speech", "9.0-10.0")),
        "Somebody speaks, then a dog barks, then somebody speaks.",
        {
            "list": "speech <t>0.5-5.2</t>, dog <t>7.0-7.8</t>, speech <t>9.0-10.0</t>.",
            "count": "speech, dog, speech: 3.", "first": "speech.", "last": "speech.",
            "transcribe": "It is half past nine. Where is the red cup? The cup is under the lamp. "
                          "We went to the bank.",
            "transcribe_timed": "<t>0.5-2.0</t> It is half past nine.\n"
                                "<t>2.5-4.0</t> Where is the red cup?\n"
                                "<t>3.7-5.2</t> The cup is under the lamp.\n"
                                "<t>9.0-10.0</t> We went to the bank.",
            "diarize": "Speaker 1 <t>0.5-2.0</t>, Speaker 2 <t>2.5-4.0</t>, Speaker 1 <t>3.7-5.2</t>, "
                       "Speaker 2 <t>9.0-10.0</t>.",
            "attribute": "<t>0.5-2.0</t> Speaker 1: It is half past nine.\n"
                         "<t>2.5-4.0</t> Speaker 2: Where is the red cup?\n"
                         "<t>3.7-5.2</t> Speaker 1: The cup is under the lamp.\n"
                         "<t>9.0-10.0</t> Speaker 2: We went to the bank.",
            "speakers": "Two.", "interrupted": "Yes.",
        },
    ),
    "music": Case(
        Scene(NONE, (), (), (
            Melody("harp", (Note(60, 0.5, 1.0), Note(64, 1.0, 1.5), Note(67, 1.5, 2.5),
                            Note(61, 2.5, 3.46)), 120, "louder"),)),
        (("music", "0.5-3.5"),), "Music plays.",
        {
            "list": "music <t>0.5-3.5</t>.", "count": "music: 1.", "first": "music.", "last": "music.",
            "instrument": "Harp.", "tempo": "Moderate, about 120 beats per minute.",
            "loudness": "It gets louder.",
            "notes": "C4 <t>0.5</t>, E4 <t>1.0</t>, G4 <t>1.5</t>, C#4 <t>2.5</t>.",
            "transcribe": "No speech was recognised.",
        },
    ),
    "all": Case(
        Scene(NONE, (Event("drip", 3.0, 4.0),), (Utterance("eva", "Call Tom at two.", 5.0, 6.2),), (
            Melody("organ", (Note(69, 0.0, 1.0), Note(71, 1.0, 1.5)), 60, "steady"),
            Melody("flute", (Note(72, 7.0, 8.0), Note(74, 8.0, 9.0)), 150, "softer"))),
        (("music", "0.0-1.5"), ("drip", "3.0-4.0"), ("speech", "5.0-6.2"), ("music", "7.0-9.0")),
        "Music plays, then water drips, then somebody speaks, then music plays.",
        {
            "list": "music <t>0.0-1.5</t>, drip <t>3.0-4.0</t>, speech <t>5.0-6.2</t>, music <t>7.0-9.0</t>.",
            "count": "music, drip, speech, music: 4.", "first": "music.", "last": "music.",
            "transcribe": "Call Tom at two.", "transcribe_timed": "<t>5.0-6.2</t> Call Tom at two.",
            "diarize": "Speaker 1 <t>5.0-6.2</t>.", "speakers": "One.",
            "instrument": "Organ, flute.",
        },
    ),
}  # fmt: skip


def one_of(texts: Sequence[str]) -> str:
    return "|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True))


LABEL_OF = {noun: label for label, word in WORDS.items() for noun in word.nouns}
LABEL_OF |= {noun: noun for noun in (*UNHEARD, *(i.name for i in INSTRUMENTS))}
NOUN = one_of(tuple(LABEL_OF))
VERB = one_of((*ANY_VERB, *(v for w in WORDS.values() for v in w.verbs)))
FIELDS = {
    "noun": ("noun", NOUN), "a": ("noun", NOUN), "other": ("other", one_of(tuple(WORDS))),
    "nouns": ("nouns", f"(?:(?:, | and )?the (?:{NOUN}))+"),
    "verb": ("verb", VERB), "time": ("time", r"\d+\.\d"), "which": ("which", "first|second"),
}  # fmt: skip


def readable(phrasing: str) -> str:
    """A pattern of what a phrasing can become, with a group for each field: ``noun``, ``noun_1``, .."""
    numbers = itertools.count()

    def group(found: re.Match[str]) -> str:
        name, values = FIELDS[found[1]]
        article = "(?:an? )?" if found[1] == "a" else ""
        return f"{article}(?P<{name}_{next(numbers)}>{values})"

    return re.sub(r"\\\{(\w+)\\\}", group, pattern(phrasing.rstrip("?.")))


READABLE = {task: [readable(p) for p in phrasings] for task, phrasings in PHRASINGS.items()}
AS_SUCH = ("speech", "music")  # have phrasings of their own, without a noun


def asked(exchange: Exchange) -> dict[str, str]:
    """What a question asks about, read from its words by the phrasings of its kind."""
    of_their_own = [
        (w, label) for label in AS_SUCH for w in READABLE.get(f"{exchange.task}_{label}", ())
    ]
    for words, label in (*((w, "") for w in READABLE[exchange.task]), *of_their_own):
        form = f"(?:{one_of(LEADS)})?{words}[?.]?(?:{one_of([e.rstrip('.') for e in ENDS])})?[?.]?"
        if found := re.fullmatch(form, exchange.question, re.IGNORECASE):
            fields = {k.partition("_")[0]: v.lower() for k, v in found.groupdict().items() if v}
            return fields | ({"noun": label} if label else {})
    raise AssertionError(f"no phrasing of {exchange.task}: {exchange.question}")


def _times(span: str) -> tuple[float, float]:
    start, end = map(float, span.split("-"))
    return start, end


def truth(case: Case, exchange: Exchange) -> str:
    """The true answer, from what was written down by hand."""
    about_it = asked(exchange)
    labels = case.labels()
    label = LABEL_OF.get(about_it.get("noun", ""), "")
    spans = [f"<t>{span}</t>" for name, span in case.heard if name == label]
    match exchange.task:
        case "when":
            found = ", ".join(f"{label} {span}" for span in spans)
            return f"{found}." if found else f"There is no {label}."
        case "when_each":
            wanted = [LABEL_OF[noun] for noun in re.findall(rf"the ({NOUN})", about_it["nouns"])]
            assert len(set(wanted)) == len(wanted) > 1
            each = [[f"{w} <t>{span}</t>" for name, span in case.heard if name == w] or [f"no {w}"]
                    for w in wanted]  # fmt: skip
            return ", ".join(itertools.chain.from_iterable(each)) + "."
        case "presence":
            return "Yes." if label in labels else "No."
        case "count_of":
            return f"{', '.join(spans)}: {len(spans)}." if spans else "0."
        case "after" | "before":
            assert labels.count(label) == 1
            place = labels.index(label) + (1 if exchange.task == "after" else -1)
            return f"{labels[place]}." if 0 <= place < len(labels) else "Nothing."
        case "which_first" | "is_before":
            other = about_it["other"]
            assert labels.count(label) == labels.count(other) == 1
            earlier = labels.index(label) < labels.index(other)
            if exchange.task == "is_before":
                return "Yes." if earlier else "No."
            return f"{label if earlier else other}."
        case "at":
            moment = float(about_it["time"])
            times = [(name, *_times(span)) for name, span in case.heard]
            # 0.2 s, less the rounding of what is written
            assert all(abs(moment - t) > 0.14 for _, start, end in times for t in (start, end))
            now = [name for name, start, end in times if start < moment < end]
            return f"{', '.join(now)}." if now else "Nothing."
        case "caption":
            return case.caption
        case "instrument_presence":
            played = case.answers["instrument"].lower().rstrip(".").split(", ")
            return "Yes." if label in played else "No."
    return case.answers[exchange.task]


def made(case: Case, makers: Mapping, heard: object, count: int = 150) -> Iterator[Exchange]:
    rng = random.Random(0)
    for _, maker in makers.values():
        yield from filter(None, (maker(heard, rng) for _ in range(count)))


@pytest.mark.parametrize("name", CASES)
def test_every_answer_is_true(name: str) -> None:
    case = CASES[name]
    found: Counter = Counter()
    for exchange in (
        *made(case, sounds.MAKERS, tasks.timeline(case.scene)),
        *(made(case, speech.MAKERS, case.scene.utterances) if case.scene.utterances else ()),
        *(made(case, music.MAKERS, case.scene.melodies) if case.scene.melodies else ()),
        *(about(case.scene, random.Random(seed), {"transcribe": 1.0}) for seed in range(20)),
    ):
        assert exchange.answer == truth(case, exchange), exchange.question
        found[exchange.task] += 1
    assert set(case.answers) <= set(found)  # each is asked
    expected = {"when", "presence", "count_of", "caption"}
    if case.heard:
        expected |= {"at", "count", "first", "last"}
    assert expected <= set(found)
    assert ("interrupted" in found) == ("attribute" in found) == (len(case.scene.utterances) > 1)
    assert ("notes" in found) == ("tempo" in found) == (len(case.scene.melodies) == 1)


def test_questions_about_order_need_what_is_there_once() -> None:
    """ "After the bell" means nothing where there are two."""
    found = {e.task for e in made(CASES["nothing"], sounds.MAKERS, ())}
    assert not found & {"after", "before", "which_first", "is_before", "at"}
    twice = (Event("bell", 0.0, 1.0), Event("bell", 2.0, 3.0))
    found = {e.task for e in made(CASES["nothing"], sounds.MAKERS, twice)}
    assert not found & {"after", "before", "which_first", "is_before"}
    once = (*twice, Event("dog", 4.0, 5.0), Event("cat", 6.0, 7.0))
    made_here = list(made(CASES["nothing"], sounds.MAKERS, once))
    neighbours = {(e.task, asked(e)["noun"], e.answer) for e in made_here if e.task in ("after", "before")
                  and asked(e)["noun"] in ("dog", "cat")}  # fmt: skip
    assert neighbours == {("after", "dog", "cat."), ("before", "dog", "bell."),
                          ("after", "cat", "Nothing."), ("before", "cat", "dog.")}  # fmt: skip


@pytest.mark.parametrize("name", ["sounds", "talk", "music"])
def test_half_of_the_questions_ask_for_what_is_absent(name: str) -> None:
    heard = tasks.timeline(CASES[name].scene)
    rng = random.Random(0)

    def share(make: Callable, *answers: str) -> float:
        return float(np.mean([make().answer.startswith(answers) for _ in range(2000)]))

    makers = {task: (lambda m=m: m(heard, rng)) for task, (_, m) in sounds.MAKERS.items()}
    assert share(makers["presence"], "No.") == pytest.approx(0.5, abs=0.05)  # 4 sigma
    assert share(makers["when"], "There is no") == pytest.approx(0.2, abs=0.04)
    assert share(makers["count_of"], "0.") == pytest.approx(0.25, abs=0.04)
    melodies = CASES["music"].scene.melodies
    present = music.MAKERS["instrument_presence"][1]
    assert share(lambda: present(melodies, rng), "No.") == pytest.approx(0.5, abs=0.05)
    absent = Counter(sounds.absent_label(heard, rng) for _ in range(2000))
    assert not {e.label for e in heard} & set(absent)
    near = {c for e in heard for c in WORDS[e.label].confused_with}
    assert sum(absent[c] for c in near) / 2000 > 0.38
    assert sum(absent[c] for c in UNHEARD) / 2000 == pytest.approx(0.2, abs=0.04)


@pytest.mark.parametrize(
    ("tempo", "said"),
    [(50, "Slow"), (75, "Slow"), (80, "Moderate"), (130, "Moderate"), (135, "Fast"), (180, "Fast")],
)
def test_paces_have_words(tempo: int, said: str) -> None:
    assert music.pace(tempo) == f"{said}, about {tempo} beats per minute."


def test_long_melodies_are_not_written_down_and_short_ones_have_no_tempo() -> None:
    def kinds(count: int) -> set[str]:
        notes = tuple(Note(60, i / 2, i / 2 + 0.5) for i in range(count))
        return {
            e.task
            for e in made(CASES["music"], music.MAKERS, [Melody("harp", notes, 120, "steady")])
        }

    assert "notes" not in kinds(17)
    assert "notes" in kinds(16)
    assert {"tempo", "loudness"} <= kinds(4)
    assert not {"tempo", "loudness"} & kinds(3)


@pytest.mark.parametrize(
    ("count", "said"), [(1, "One."), (6, "Six."), (12, "Twelve."), (21, "Twenty one.")]
)
def test_any_number_of_speakers_is_counted(count: int, said: str) -> None:
    """A long recording has more than a dialogue."""
    talk = [Utterance(f"s{i}", "Hm.", 2.0 * i, 2.0 * i + 1) for i in range(count)]
    assert {e.answer for e in made(CASES["talk"], {"x": speech.MAKERS["speakers"]}, talk)} == {said}


def test_nobody_is_interrupted_who_had_finished() -> None:
    talk = [Utterance("a", "Hm.", 0.0, 1.0), Utterance("b", "Hm.", 1.0, 2.0)]
    answers = {e.answer for e in made(CASES["talk"], {"x": speech.MAKERS["interrupted"]}, talk)}
    assert answers == {"No."}


PAIRS = [
    ("sounds", "talk"),
    ("sounds", "nothing"),
    ("music", "all"),
    ("sounds", "sounds"),
    ("nothing", "nothing"),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_answers_about_two_recordings_are_true(one: str, other: str) -> None:
    first, second = CASES[one].labels(), CASES[other].labels()
    rng = random.Random(0)
    found: Counter = Counter()
    for _ in range(400):
        exchange = about_two(CASES[one].scene, CASES[other].scene, rng)
        about_it = asked(exchange)
        label = LABEL_OF.get(about_it.get("noun", ""))
        where = (label in first, label in second)
        heard = " ".join(
            ", ".join(labels) + "." if labels else "Nothing." for labels in (first, second)
        )
        which = {(True, False): "the first.", (False, True): "the second."}.get(where)
        expected = {
            "which_has": f"{heard} {label}: {which}",
            "same_sounds": f"{heard} {'Yes.' if set(first) == set(second) else 'No.'}",
            "in_both": f"{heard} {'Yes.' if all(where) else 'No.'}",
            "more": f"{CASES[one].answers['count']} {CASES[other].answers['count']} "
            + ("The first." if len(first) > len(second) else "The second."),
            "list_of": CASES[one if about_it.get("which") == "first" else other].answers["list"],
        }[exchange.task]
        assert exchange.answer == expected, exchange.question
        found[exchange.task, exchange.answer.split()[-1]] += 1
    kinds = {task for task, _ in found}
    assert "same_sounds" in kinds
    assert ("which_has" in kinds) == (set(first) != set(second))
    assert ("more" in kinds) == (len(first) != len(second))
    if (one, other) == ("music", "all"):
        assert {("in_both", "Yes."), ("in_both", "No.")} <= set(found)


def test_every_kind_is_asked_as_often_as_it_weighs() -> None:
    """Of all kinds, those about what is there; 2 % are refused; of recordings without speech 5 % are asked
    for a transcript."""
    for name in ("sounds", "all"):
        rng = random.Random(0)
        counts = Counter(about(CASES[name].scene, rng).task for _ in range(4000))
        assert counts["refusal"] / 4000 == pytest.approx(0.02, abs=0.009)  # 4 sigma
        assert counts["presence"] / counts["count"] == pytest.approx(3 / 0.8, rel=0.35)
        if name == "sounds":
            assert counts["transcribe"] / 4000 == pytest.approx(0.05, abs=0.015)
            assert not set(counts) & {"diarize", "instrument", "notes"}
        else:
            assert {"diarize", "instrument", "speakers", "transcribe_timed"} <= set(counts)


def test_weights_choose_what_is_asked() -> None:
    rng = random.Random(0)
    scene = CASES["sounds"].scene
    made_here = Counter(
        about(scene, rng, {"first": 3.0, "when": 1.0, "last": 0.0}).task for _ in range(800)
    )
    assert set(made_here) == {"first", "when"}
    assert made_here["first"] / 800 == pytest.approx(0.75, abs=0.06)
    assert about(scene, rng, {"refusal": 1.0}).answer == ANSWER
    assert about(scene, rng, {"transcribe": 1.0}).answer == "No speech was recognised."
    with pytest.raises(ValueError, match="'weather'"):
        about(scene, rng, {"weather": 1.0})
    for weights in ({"diarize": 1.0}, {"first": 0.0}, {}):
        with pytest.raises(ValueError, match="no kind of question that is asked for fits"):
            about(scene, rng, weights)


def test_requests_for_harm_are_refused_whatever_is_heard() -> None:
    rng = random.Random(0)
    refused = [about(CASES["talk"].scene, rng, {"refusal": 1.0}) for _ in range(2000)]
    assert {exchange.answer for exchange in refused} == {ANSWER}
    seen = {exchange.question for exchange in refused}
    for request in READABLE["refusal"]:
        assert any(re.search(request, question, re.IGNORECASE) for question in seen), request


def test_every_phrasing_is_used_and_leaves_no_field_open(banks: Banks) -> None:
    """Over scenes of all kinds; and no question or answer is without its words."""
    used: dict[str, set[str]] = {task: set() for task in PHRASINGS}
    rng = random.Random(0)
    scenes = [
        compose(kind, seconds, np.random.default_rng(seed), banks)
        for kind, seconds in (("sounds", 6.0), ("dialogue", 9.0), ("music", 6.0), ("mixed", 9.0))
        for seed in range(5)
    ]
    for _ in range(700):
        for scene in scenes:
            exchange = about(scene, rng)
            if exchange.task != "refusal":
                used[exchange.task].add(exchange.question.lower())
            assert not set("{}") & set(exchange.question + exchange.answer)
            assert not re.search(r"\b(a|A) [aeio]", exchange.question), exchange.question
            assert exchange.answer[-1] in ".?"
    for _ in range(3000):
        first, second = rng.sample(scenes, 2)
        exchange = about_two(first, second, rng)
        used[exchange.task].add(exchange.question.lower())
    for label, task in itertools.product(AS_SUCH, ("when", "presence")):
        used[task] |= {ask(task, "", rng, label).question.lower() for _ in range(1500)}
    for name, phrasings in READABLE.items():
        task = re.sub(f"_({one_of(AS_SUCH)})$", "", name)
        assert len(phrasings) >= 2
        for words in phrasings:
            assert task == "refusal" or any(re.search(words, q, re.I) for q in used[task]), words


def test_answers_are_read_back(banks: Banks) -> None:
    """Times in answers are of one form; those of listings, notes and turns are the labels' to 0.1 s."""
    rng = random.Random(0)
    for kind, seed in ((k, s) for k in ("sounds", "dialogue", "music", "mixed") for s in range(6)):
        scene = compose(kind, 12.0, np.random.default_rng(seed), banks)
        told: dict[str, list[tuple[float, ...]]] = {
            "list": [(e.onset, e.offset) for e in tasks.timeline(scene)],
            "diarize": [(u.onset, u.offset) for u in scene.utterances],
            "transcribe_timed": [(u.onset, u.offset) for u in scene.utterances],
            "attribute": [(u.onset, u.offset) for u in scene.utterances],
            "notes": [(n.onset,) for m in scene.melodies for n in m.notes],
        }
        for _ in range(60):
            exchange = about(scene, rng)
            found = [
                tuple(map(float, t.split("-")))
                for t in re.findall(r"<t>(\d+\.\d(?:-\d+\.\d)?)</t>", exchange.answer)
            ]
            assert exchange.answer.count("<t>") == exchange.answer.count("</t>") == len(found)
            if exchange.task in told:
                assert np.shape(found) == np.shape(told[exchange.task])
                assert np.abs(np.subtract(found, told[exchange.task])).max(initial=0) < 0.0501
                times = [t[0] for t in found]
                assert times == sorted(times)


def test_a_timeline_joins_speech_over_short_pauses_only() -> None:
    def stretches(*times: tuple[float, float]) -> list[tuple[float, float]]:
        talk = tuple(Utterance("a", "Hm.", *t) for t in times)
        return [(e.onset, e.offset) for e in tasks.timeline(Scene(NONE, (), talk))]

    assert stretches((0, 1), (1.59, 3)) == [(0, 3)]
    assert stretches((0, 1), (1.61, 3)) == [(0, 1), (1.61, 3)]
    assert stretches((0, 4), (1, 2), (4.5, 5)) == [(0, 5)]  # one within another
    loud = Scene(
        NONE,
        (Event("bell", 1.2, 1.4),),
        (Utterance("a", "Hm.", 0, 1), Utterance("a", "Hm.", 1.5, 2)),
    )
    assert [e.label for e in tasks.timeline(loud)] == ["speech", "bell"]


def test_restyling_keeps_the_words() -> None:
    rng = random.Random(2)
    styled = {restyle("When does the bell ring?", rng) for _ in range(300)}
    assert len(styled) > 8
    assert all("when does the bell ring" in s.lower() for s in styled)
    assert {s.isupper() for s in styled} == {s.endswith("?") for s in styled} == {True, False}
    tagged = {restyle("What is heard at <t>1.0</t>?", rng) for _ in range(300)}
    assert all("<t>1.0</t>" in s for s in tagged)


def test_a_seed_gives_the_same_questions() -> None:
    one, two, other = (
        [about(CASES["all"].scene, rng) for _ in range(20)]
        for rng in (random.Random(1), random.Random(1), random.Random(2))
    )
    assert one == two
    assert one != other


def test_kinds_have_one_name() -> None:
    assert len(set(TASKS)) == len(TASKS)
    assert {
        e.task for e in made(CASES["sounds"], sounds.MAKERS, tasks.timeline(CASES["sounds"].scene))
    } <= set(PHRASINGS)


def test_who_asks_plainly_words_a_question_in_one_of_the_first_ways() -> None:
    ways = {ask("first", "", Plainly(seed)).question.lower() for seed in range(400)}
    assert all(any(p.rstrip("?").lower() in w for p in PHRASINGS["first"][:3]) for w in ways)
    assert len(ways) > 10
    anyhow = {ask("first", "", random.Random(seed)).question for seed in range(400)}
    assert any(re.search(READABLE["first"][-1], w, re.IGNORECASE) for w in anyhow)
    assert any(any(w.rstrip(".").endswith(end.rstrip(".")) for end in ENDS) for w in anyhow)


def test_a_choice_is_one_of_what_is_between_the_bars() -> None:
    form = pattern("[Is|Was] there {a}[ here|]?")
    for said in ("Is there {a}?", "Was there {a} here?"):
        assert re.fullmatch(form, said)
    for other in ("Is there {a} heard?", "There {a}?", "[Is|Was] there {a}?"):
        assert not re.fullmatch(form, other)
