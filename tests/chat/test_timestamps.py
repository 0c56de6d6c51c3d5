"""Every form of timestamp is read; seconds and minutes are told apart; nonsense is named, not hidden."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnext.chat import Segment, parse_timestamps
from afnext.errors import ChatError


def brief(text: str, **options: object) -> list[tuple[float, float, str]]:
    return [(s.start, s.end, s.text) for s in parse_timestamps(text, **options)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<t>308.71-309.97</t> Yes.", [(308.71, 309.97, "Yes.")]),
        ("<t>0.574-1.034</t> Well", [(57.4, 63.4, "Well")]),
        ("<t>12.3</t> a dog", [(12.3, 12.3, "a dog")]),
        ("<t>1-2</t> a dog", [(1, 2, "a dog")]),
        ("<t> 1.5s - 2.5 s </t>: a dog,", [(1.5, 2.5, "a dog")]),
        ("<t>01:02-1:02:03.5</t> a dog", [(62, 3723.5, "a dog")]),
        ("<T>1.5–2.5</T> a dog", [(1.5, 2.5, "a dog")]),
        ("bell <t>1.2-2.5</t>, siren <t>3.0-4.1</t>.", [(1.2, 2.5, "bell"), (3, 4.1, "siren")]),
        ("bell <t>1.2-2.5</t>.", [(1.2, 2.5, "bell")]),
        ("bell: <t>1.2-2.5</t>\nsiren: <t>3.0-4.1</t>", [(1.2, 2.5, "bell"), (3, 4.1, "siren")]),
        ("- bell at <t>1.2</t>\n- dog from <t>3.0</t>\n", [(1.2, 1.2, "bell"), (3, 3, "dog")]),
        ("A bell <t>1.2</t>, then a dog <t>3.0</t> bark.", [(1.2, 1.2, "A bell"), (3, 3, "a dog")]),
        ("Here you are: <t>1.2</t> bell <t>3.0</t> dog", [(1.2, 1.2, "bell"), (3, 3, "dog")]),
        (
            "At <t>1.2</t> a bell, and at <t>3.0</t> a dog.",
            [(1.2, 1.2, "a bell"), (3, 3, "a dog.")],
        ),
        ("[00:01 - 00:05] Hello\n[00:05 - 00:07] Yes", [(1, 5, "Hello"), (5, 7, "Yes")]),
        ("[00:01.250 --> 00:05.5]  Hello", [(1.25, 5.5, "Hello")]),
        ("(0:01 to 0:05) Hello", [(1, 5, "Hello")]),
        ("[0:01] Hello [1:05] Yes", [(1, 1, "Hello"), (65, 65, "Yes")]),
        ("[0.5-1.25] Hello", [(0.5, 1.25, "Hello")]),
        ("[3s - 5s] Hello (7 seconds) Yes", [(3, 5, "Hello"), (7, 7, "Yes")]),
        ("00:01 - 00:05: Hello\n00:05 - 00:07: Yes", [(1, 5, "Hello"), (5, 7, "Yes")]),
        ("* 0:01 Hello", [(1, 1, "Hello")]),
        (
            "1\n00:00:01,000 --> 00:00:04,500\nHello\nall\n\n2\n00:00:05,000 --> 00:00:06,000\nYes\n",
            [(1, 4.5, "Hello\nall"), (5, 6, "Yes")],
        ),
        ("WEBVTT\n\n00:01.000 --> 00:04.500\nHello\n", [(1, 4.5, "Hello")]),
        ("<t>1.2-2.5</t> bell <t>3.0-", [(1.2, 2.5, "bell")]),
        ("Nothing.", []),
        ("", []),
        ("See [1] and [2-3] at 3:75, (4).", []),
        ("<t>soon</t> a dog", []),
        ("It is 10:30 now", []),
    ],
)
def test_forms(text: str, expected: list[tuple[float, float, str]]) -> None:
    assert brief(text) == expected


@pytest.mark.parametrize(
    ("text", "speaker", "info", "rest"),
    [
        ("Speaker 1 (Female, Interviewer): Hello.", "Speaker 1", "Female, Interviewer", "Hello."),
        ("[Speaker 2] Hello.", "Speaker 2", None, "Hello."),
        ("[Speaker 2 (Male)]: Hello.", "Speaker 2", "Male", "Hello."),
        ("SPEAKER_00: Hello.", "SPEAKER_00", None, "Hello."),
        ("<v Ada>Hello.", "Ada", None, "Hello."),
        ("Speakers: two.", None, None, "Speakers: two."),
        ("Hello, Speaker 1: no.", None, None, "Hello, Speaker 1: no."),
    ],
)
def test_speakers(text: str, speaker: str | None, info: str | None, rest: str) -> None:
    assert parse_timestamps(f"<t>1.50-2.50</t> {text}") == [Segment(1.5, 2.5, rest, speaker, info)]


EIGHTY_WORDS = " ".join(["word"] * 80)


@pytest.mark.parametrize(
    ("text", "duration", "expected"),
    [
        ("<t>0.574-1.034</t>", None, (57.4, 63.4)),  # three digits: minutes
        ("<t>0.574-1.034</t>", 70.0, (57.4, 63.4)),
        ("<t>0.574-1.034</t>", 30.0, (0.574, 1.034)),  # minutes would leave the recording
        ("<t>0.574-1.634</t>", None, (0.574, 1.634)),  # no minute has 63 seconds
        ("<t>0.57-1.03</t>", None, (0.57, 1.03)),  # two digits are never minutes
        ("<t>0.574-1.03</t>", None, (0.574, 1.03)),
        ("<t>1-1.034</t>", None, (60.0, 63.4)),
        ("<t>1-2</t>", None, (1.0, 2.0)),  # nothing says minutes
        (f"<t>0.000-0.300</t> {EIGHTY_WORDS}", None, (0.0, 30.0)),  # 80 words in 30 s, not in 0.3
        (
            f"<t>0.000-30.500</t> {EIGHTY_WORDS}",
            None,
            (0.0, 30.5),
        ),  # 80 words in 30 s, not in 30 min
        (f"<t>0.000-30.500</t> {EIGHTY_WORDS}", 1800.0, (0.0, 30.5)),
    ],
)
def test_the_rule_of_seconds_and_minutes(
    text: str, duration: float | None, expected: tuple[float, float]
) -> None:
    (segment,) = parse_timestamps(text, duration=duration)
    assert (segment.start, segment.end) == expected


def test_one_time_decides_for_the_document() -> None:
    text = "<t>0.100-0.200</t> bell <t>0.500-0.700</t> dog"
    assert brief(text)[0][:2] == (0.1, 0.2)
    assert brief(text.replace("0.700", "0.550"))[0][:2] == (10, 20)


def test_style_overrules() -> None:
    assert brief("<t>0.574-1.034</t>", style="seconds")[0][:2] == (0.574, 1.034)
    assert brief("<t>0.5-1</t>", style="minutes")[0][:2] == (50, 60)
    assert brief("<t>01:02</t>", style="minutes")[0][:2] == (62, 62)
    with pytest.raises(ChatError, match="style"):
        parse_timestamps("", style="hours")
    for duration in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ChatError, match="duration"):
            parse_timestamps("", duration=duration)


def test_bad_times_are_kept_and_named() -> None:
    back, beyond, good = parse_timestamps(
        "bell <t>5.0-4.0</t>, dog <t>9.0-99.0</t>, cat <t>1.0-10.4</t>.", duration=10
    )
    assert (back.start, back.end, back.issue) == (5, 4, "the end comes before the start")
    assert (beyond.end, beyond.issue) == (99, "beyond the end of the recording")
    assert good.issue is None  # a little over is rounding


LABEL = st.sampled_from(["bell", "siren", "dog bark", "footsteps"])
TIME = st.integers(0, 6000).map(lambda t: t / 10)


@given(st.lists(st.tuples(TIME, TIME, LABEL), min_size=1, max_size=8))
def test_nanos_answers_come_back(events: list[tuple[float, float, str]]) -> None:
    """``bell <t>1.2-2.5</t>, siren <t>3.0-4.1</t>.`` for any events."""
    text = ", ".join(f"{label} <t>{a:.1f}-{b:.1f}</t>" for a, b, label in events) + "."
    assert brief(text) == events


@given(st.lists(st.tuples(st.integers(0, 17_999), st.integers(1, 600)), min_size=1, max_size=8))
def test_minutes_come_back(spans: list[tuple[int, int]]) -> None:
    """Tenths of a second written as minutes.SSd, for any times of a 30-minute recording."""

    def written(tenths: int) -> str:
        minutes, rest = divmod(tenths, 600)
        return f"{minutes}.{rest:03}"

    text = "\n".join(f"<t>{written(a)}-{written(a + n)}</t> Speaker 1: Hm." for a, n in spans)
    expected = [(a / 10, (a + n) / 10, "Hm.") for a, n in spans]
    assert brief(text, duration=1900) == expected


VOCABULARY = (
    """<t> </t> 1.034 12:30 0:05 - --> [ ] ( ) bell at Speaker 1 : 3s , < 99999.999 ٣ <v > WEBVTT"""
)
PIECES = st.sampled_from([*VOCABULARY.split(), " ", "\n", "9" * 30])


@given(st.lists(PIECES | st.text(max_size=3), max_size=40).map("".join), st.none() | st.just(60.0))
def test_any_text_is_read(text: str, duration: float | None) -> None:
    for segment in parse_timestamps(text, duration=duration):
        assert 0 <= segment.start < 1e10
        assert 0 <= segment.end < 1e10
        assert segment.text == segment.text.strip()


@pytest.mark.parametrize(
    "piece", [" ", "\n", "(", "<t>", "<t>1", "<t>1.5 ", "- ", ": ", "at ", "\n1"]
)
def test_long_nonsense_takes_no_time(piece: str) -> None:
    """A model that repeats itself to its last token: quadratic matching would take minutes."""
    assert parse_timestamps("<t>1.5</t> a" + piece * 20_000 + "b")
    assert parse_timestamps(piece * 20_000 + "<t>1.5</t>")
