"""Timestamps in what a model writes, read into segments.

Forms, with ``T`` a time and ranges joined by ``-``, a dash, ``to`` or ``-->``:

- ``<t>T-T</t>`` and ``<t>T</t>``, T in seconds, in minutes as below, or as a clock;
- ``[T - T]``, ``(T - T)``, ``[T]`` with a clock, or with decimals or a unit (``[0.5-1.25]``, ``[3s]``);
- a clock at the start of a line: ``00:01 - 00:05: text``, and so SRT and WebVTT.

A clock is ``mm:ss`` or ``hh:mm:ss``, with a fraction or without.

**Seconds or minutes.** Audio Flamingo Next also writes minutes, with the fraction holding two digits of
seconds and one of tenths: ``<t>0.574-1.034</t>`` is 57.4 s to 63.4 s, where ``<t>308.71-309.97</t>`` is
plain seconds. One document keeps to one style, so the whole of it decides. It is in minutes if

1. every time that has a fraction has one of exactly three digits (and at least one has), and
2. no such fraction starts with 60 or more, and
3. the last time, read as minutes, lies inside the recording where its ``duration`` is known (1 s or
   2 % over is forgiven), and
4. where the document has ten words or more, they are not spoken at a natural pace only when read as
   seconds: at 0.7 to 7 words a second of marked time, but less than one word in five seconds of
   minutes.

Both readings keep the order of times, so order decides nothing.

Bad times are kept as they were written and named in ``Segment.issue``: an end before its start, a time
beyond the recording. (A start before an earlier one is not bad: events overlap.) The writers of
:mod:`afnext.chat.subtitles` mend what players would choke on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from afnext.errors import ChatError

Style = Literal["auto", "seconds", "minutes"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a recording and what is said of it.

    Attributes:
        start, end: seconds; equal for a single time.
        text: the label or transcript, without the time and the speaker.
        speaker: e.g. "Speaker 1", or None.
        speaker_info: what stands after the speaker in parentheses, e.g. "Female, Interviewer".
        issue: what is wrong with the times, or None.
    """

    start: float
    end: float
    text: str
    speaker: str | None = None
    speaker_info: str | None = None
    issue: str | None = None


_CLOCK = r"\d{1,3}:[0-5]\d(?::[0-5]\d)?(?:[.,]\d{1,6})?"
_NUMBER = r"\d{1,7}(?:\.\d{1,6})?"
_UNIT = r"(?:\s?(?:seconds|second|secs|sec|s))"
_TO = r"\s*(?:-->|[-\u2010-\u2015~]|to)\s*"
_ANY = rf"(?:{_CLOCK}|{_NUMBER})"
_MARK = re.compile(
    rf"""
    <t>\s*(?P<a1>{_ANY}){_UNIT}?(?:{_TO}(?P<b1>{_ANY}){_UNIT}?)?\s*</t>
    | (?P<open>[\[(])\s*(?:
        (?P<a2>{_CLOCK})(?:{_TO}(?P<b2>{_CLOCK}))?
        | (?P<a3>\d{{1,7}}\.\d{{1,6}}){_UNIT}?{_TO}(?P<b3>\d{{1,7}}\.\d{{1,6}}){_UNIT}?
        | (?P<a4>{_NUMBER}){_UNIT}?{_TO}(?P<b4>{_NUMBER}){_UNIT}
        | (?P<a5>{_NUMBER}){_UNIT}
      )\s*[\])]
    | ^[ \t]*(?:[-*\u2022][ \t]+)?(?P<a6>{_CLOCK})(?:{_TO}(?P<b6>{_CLOCK}))?(?=[\s:,\-\u2013]|$)
    """,
    re.VERBOSE | re.MULTILINE | re.IGNORECASE,
)
_SPEAKER = re.compile(
    r"""\A\s*(?:\[\s*(?P<a>speaker(?:[ _]?\d{1,3}|[ _][a-z])\b)\s*(?:\((?P<ai>[^()\n]*)\))?\s*\]\s*:?
    | <v\s+(?P<v>[^>\n]{1,40})>
    | (?P<b>speaker(?:[ _]?\d{1,3}|[ _][a-z])\b)\s*(?:\((?P<bi>[^()\n]*)\))?\s*:)\s*""",
    re.VERBOSE | re.IGNORECASE,
)
_WORD = re.compile(r"\w")


class _Mark(NamedTuple):
    """A timestamp in the text: what it says, and where."""

    first: str
    last: str
    start: int
    end: int


def parse_timestamps(
    text: str, style: Style = "auto", duration: float | None = None
) -> list[Segment]:
    """Read every timestamp of ``text`` with what belongs to it, in the order of the text.

    The words may stand after the times (``<t>1-2</t> Speaker 1: Hello.``) or before them
    (``bell <t>1.2-2.5</t>, siren <t>3.0-4.1</t>.``); the whole text decides. What precedes the first
    time, if words follow the times, is an introduction and dropped.

    Args:
        style: how decimal times are meant; "auto" follows the rule at the head of this module. Clocks
            mean the same in every style.
        duration: the length of the recording in seconds, if known.

    Raises:
        ChatError: an unknown style or a duration that is no positive number.
    """
    if style not in get_args(Style):
        raise ChatError(f"style must be one of {', '.join(get_args(Style))}, got {style!r}")
    if duration is not None and not 0 < duration < float("inf"):
        raise ChatError(f"duration must be a positive number of seconds, got {duration}")
    marks = _marks(text)
    if not marks:
        return []
    labels = _labels(text, marks)
    minutes = style == "minutes" or (
        style == "auto" and _in_minutes([t for m in marks for t in m[:2]], labels, duration)
    )
    return [
        _segment(_seconds(m.first, minutes), _seconds(m.last, minutes), label, duration)
        for m, label in zip(marks, labels, strict=True)
    ]


def _marks(text: str) -> list[_Mark]:
    found = []
    for match in _MARK.finditer(text):
        times = {k: v for k, v in match.groupdict().items() if v is not None and k != "open"}
        first = next(v for k, v in times.items() if k[0] == "a")
        last = next((v for k, v in times.items() if k[0] == "b"), first)
        found.append(_Mark(first, last, match.start(), match.end()))
    return found


def _labels(text: str, marks: Sequence[_Mark]) -> list[str]:
    """The words of each mark: of the gap after it, or before it."""
    edges = [0, *(e for m in marks for e in (m.start, m.end)), len(text)]
    gaps = [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    gaps[-1] = re.sub(r"<(?:t(?:>[^<]*)?)?$|</$", "", gaps[-1])  # a tag that the end cut off
    if _words_precede(gaps):
        return [_before(gap) for gap in gaps[:-1]]
    return [_after(gap) for gap in gaps[1:]]


def _words_precede(gaps: Sequence[str]) -> bool:
    head, tail = gaps[0], gaps[-1]
    if not _WORD.search(_before(head)):
        return False
    if not _WORD.search(tail):
        return True
    if head.rstrip(" \t").endswith((":", ".", "\n")):  # an introduction
        return False
    # After words that precede their time comes a separator, not the next words.
    return all(re.match(r"\s*[,;.)\n]", gap) for gap in gaps[1:-1])


def _before(gap: str) -> str:
    gap = re.sub(r"^[\s,;.)\]]*(?:(?:and|then)\b\s*)*", "", gap, flags=re.IGNORECASE)
    return _without_link(re.sub(r"^[-*\u2022]\s+", "", gap))


def _after(gap: str) -> str:
    gap = gap.rstrip()
    numbered = re.search(r"\n[ \t]{0,9}\d{1,9}$", gap[-20:])  # SRT numbers what follows
    gap = gap[: len(gap) - len(numbered.group())] if numbered else gap
    label = _without_link(re.sub(r"^[\s:,\u2013\u2014-]+", "", gap))
    return label if _WORD.search(label) else ""  # the full stop of "At <t>1.2-2.5</t>." is no label


_LINK = re.compile(
    r"(?:[:,;(\[\u2013\u2014-]|(?:^|\s)(?:and|then|at|from|between|during))$", re.IGNORECASE
)


def _without_link(text: str) -> str:
    """Without what leads over to a time: "bell at", "siren:", "a dog barks, and from"."""
    while True:
        text = text.rstrip()
        link = _LINK.search(text[-9:])
        if link is None:
            return text.strip()
        text = text[: len(text) - len(link.group())]


def _in_minutes(times: Sequence[str], labels: Sequence[str], duration: float | None) -> bool:
    """The rule at the head of this module."""
    decimals = [t for t in times if ":" not in t]
    fractions = [t.partition(".")[2] for t in decimals if "." in t]
    if not fractions or any(len(f) != 3 or int(f[:2]) >= 60 for f in fractions):
        return False
    if duration is not None and max(_seconds(t, True) for t in decimals) > _limit(duration):
        return False
    words = sum(len(_SPEAKER.sub("", label, count=1).split()) for label in labels)
    if words < 10:
        return True
    pairs = list(zip(times[::2], times[1::2], strict=True))
    marked = {
        minutes: sum(max(0.0, _seconds(b, minutes) - _seconds(a, minutes)) for a, b in pairs)
        for minutes in (False, True)
    }
    natural = 0.7 * marked[False] <= words <= 7 * marked[False]
    return not (natural and words < 0.2 * marked[True])


def _seconds(time: str, minutes: bool) -> float:
    if ":" in time:
        value = 0.0
        for part in time.replace(",", ".").split(":"):
            value = value * 60 + float(part)
        return round(value, 6)
    whole, _, fraction = time.partition(".")
    if minutes and fraction:
        fraction = fraction.ljust(3, "0")
        return round(int(whole) * 60 + float(f"{fraction[:2]}.{fraction[2:]}"), 6)
    return int(whole) * 60.0 if minutes else float(time)


def _limit(duration: float) -> float:
    return duration + max(1.0, 0.02 * duration)


def _segment(start: float, end: float, label: str, duration: float | None) -> Segment:
    issue = None
    if end < start:
        issue = "the end comes before the start"
    elif duration is not None and max(start, end) > _limit(duration):
        issue = "beyond the end of the recording"
    speaker = info = None
    if match := _SPEAKER.match(label):
        speaker = match["a"] or match["b"] or match["v"]
        info = match["ai"] or match["bi"] or None
        label = label[match.end() :]
    return Segment(start, end, label.strip(), speaker, info, issue)
