"""Find the first frame of an MP3 behind tags and junk, and learn whether it states a length.

libsndfile refuses an MP3 that does not begin with a frame or a tag; and where no Xing header states
the length, it decodes no further than an estimate from the first bitrate, which loses the end of a
file that gets quieter. A Xing frame of our own, put before the stream, lifts that estimate.

Source of the layout: ISO 11172-3 frame header; Xing header as LAME writes it.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

_KBITS_V1 = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KBITS_V2 = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", re.DOTALL)
# Two headers in a row by chance: 1 in 10^5 places of random bytes; three: 1 in 10^10.
_FRAMES_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """One layer III frame header."""

    raw: bytes
    version: int  # 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
    rate: int
    length: int  # bytes, with the header

    @property
    def side_info(self) -> int:
        """Bytes between the header and a Xing header."""
        mono = self.raw[3] >> 6 == 3
        return (17 if mono else 32) if self.version == 3 else (9 if mono else 17)

    @property
    def stream_key(self) -> tuple[int, int]:
        return self.version, self.rate


def parse_header(raw: bytes) -> FrameHeader | None:
    """The layer III frame header in four bytes, or None."""
    if len(raw) < 4 or not _SYNC.match(raw):
        return None
    version = raw[1] >> 3 & 3
    bitrate, rate, padding = raw[2] >> 4, raw[2] >> 2 & 3, raw[2] >> 1 & 1
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return None
    kbits = (_KBITS_V1 if version == 3 else _KBITS_V2)[bitrate - 1]
    hertz = _RATES[version][rate]
    return FrameHeader(
        raw=raw[:4],
        version=version,
        rate=hertz,
        length=(144 if version == 3 else 72) * 1000 * kbits // hertz + padding,
    )


def find_first_frame(data: bytes, at_end: bool) -> tuple[int, FrameHeader] | None:
    """Offset and header of the first run of frames in ``data``; ``at_end``: nothing follows it."""
    for match in _SYNC.finditer(data):
        first = parse_header(data[match.start() : match.start() + 4])
        if first and _continues(data, match.start(), first, at_end):
            return match.start(), first
    return None


def _continues(data: bytes, offset: int, first: FrameHeader, at_end: bool) -> bool:
    header: FrameHeader | None = first
    for found in range(1, _FRAMES_IN_A_ROW):
        assert header is not None
        offset += header.length
        if offset + 4 > len(data):
            return not at_end or (offset == len(data) or found > 1)
        header = parse_header(data[offset : offset + 4])
        if header is None or header.stream_key != first.stream_key:
            return False
    return True


def states_length(data: bytes, offset: int, header: FrameHeader) -> bool:
    """Whether the frame at ``offset`` is a Xing (or Info) header with a count of frames."""
    xing = offset + 4 + header.side_info
    if data[xing : xing + 4] not in (b"Xing", b"Info") or len(data) < xing + 8:
        return False
    return bool(data[xing + 7] & 1)


def unbounded_xing_frame(header: FrameHeader, stream_bytes: int) -> bytes:
    """A Xing frame that states at least as many frames as ``stream_bytes`` can hold."""
    raw = bytes([header.raw[0], header.raw[1] | 1, header.raw[2] & 0x0C | 0x90, header.raw[3]])
    frame = parse_header(raw)
    assert frame is not None
    count = min(stream_bytes // 24 + 1, 0x7FFFFFFF)
    body = raw + bytes(frame.side_info) + b"Xing" + struct.pack(">II", 1, count)
    return body.ljust(frame.length, b"\0")
