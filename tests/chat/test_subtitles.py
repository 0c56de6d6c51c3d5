"""Subtitles hold what the segments say, in times that players accept."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from afnext.chat import Segment, parse_timestamps, to_srt, to_vtt

TALK = [
    Segment(0.0, 2.5, "Hello <you> & me.", "Speaker 1"),
    Segment(3723.0456, 3725.0, "Yes."),
]


def test_srt() -> None:
    assert to_srt(TALK) == (
        "1\n00:00:00,000 --> 00:00:02,500\nSpeaker 1: Hello <you> & me.\n\n"
        "2\n01:02:03,046 --> 01:02:05,000\nYes.\n"
    )
    assert to_srt([]) == ""


def test_vtt() -> None:
    assert to_vtt(TALK) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.500\n<v Speaker 1>Hello &lt;you&gt; &amp; me.\n\n"
        "01:02:03.046 --> 01:02:05.000\nYes.\n"
    )
    assert to_vtt([]) == "WEBVTT\n"


def test_times_are_mended() -> None:
    segments = [
        Segment(5, 4, "back"),
        Segment(1, 1, "instant"),
        Segment(2, 2, "next"),
        Segment(9, 9, ""),
    ]
    assert re.findall(r"(\S+) --> (\S+)\n(\w+)", to_srt(segments)) == [
        ("00:00:01,000", "00:00:02,000", "instant"),
        ("00:00:02,000", "00:00:04,000", "next"),
        ("00:00:05,000", "00:00:07,000", "back"),
    ]


def test_a_cue_cannot_be_broken_from_inside() -> None:
    text = "a\n\n2\n00:00:09,000 --> 00:00:10,000\nb"
    assert to_srt([Segment(0, 1, text)]).count("-->") == 1
    assert "\n\n" not in to_srt([Segment(0, 1, text)])
    assert to_vtt([Segment(0, 1, text)]).count("-->") == 1


WORDS = st.lists(st.sampled_from(["Hello", "there", "yes,", "a", "dog."]), min_size=1).map(" ".join)


@given(st.lists(st.tuples(st.integers(0, 10**7), st.integers(1, 10**5), WORDS), max_size=6))
def test_what_is_written_is_read_back(spans: list[tuple[int, int, str]]) -> None:
    """Through our own reader of both forms, to the millisecond."""
    segments = [Segment(a / 1000, (a + n) / 1000, text.strip(" ,")) for a, n, text in sorted(spans)]
    assert parse_timestamps(to_srt(segments)) == segments
    assert parse_timestamps(to_vtt(segments)) == segments
