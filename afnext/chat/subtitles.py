"""Segments written as SubRip (SRT) and WebVTT subtitles.

Times are mended on the way: an end before its start becomes the start, and a stretch without length
lasts until the next start, at most two seconds. What has no text is left out, and the rest is put in
the order of its start.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from afnext.chat.timestamps import Segment

INSTANT_SECONDS = 2.0


def to_srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered cues, ``Speaker: text``; "" for no segments."""
    cues = []
    for number, (start, end, segment) in enumerate(_cues(segments), 1):
        speaker = f"{segment.speaker}: " if segment.speaker else ""
        text = _lines(segment.text).replace("-->", "\u2192")
        cues.append(f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{speaker}{text}\n")
    return "\n".join(cues)


def to_vtt(segments: Sequence[Segment]) -> str:
    """WebVTT (W3C): speakers as voice spans, ``&``, ``<`` and ``>`` escaped."""
    cues = ["WEBVTT\n"]
    for start, end, segment in _cues(segments):
        voice = f"<v {_escape(segment.speaker)}>" if segment.speaker else ""
        text = _escape(_lines(segment.text))
        cues.append(f"{_clock(start, '.')} --> {_clock(end, '.')}\n{voice}{text}\n")
    return "\n".join(cues)


def _cues(segments: Sequence[Segment]) -> Iterator[tuple[float, float, Segment]]:
    kept = sorted((s for s in segments if s.text.strip()), key=lambda s: s.start)
    for index, segment in enumerate(kept):
        end = max(segment.start, segment.end)
        if end == segment.start:
            later = (s.start for s in kept[index + 1 :] if s.start > segment.start)
            end = min(next(later, float("inf")), segment.start + INSTANT_SECONDS)
        yield segment.start, end, segment


def _lines(text: str) -> str:
    """A cue ends at an empty line, so it may not hold one."""
    return re.sub(r"\s*\n\s*", "\n", text.strip())


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
