"""Tell containers apart by their first bytes, and how much audio the header says there is.

Only formats named here reach libsndfile; its parsers for dozens of rare formats see no byte.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from . import mpeg
from .source import ByteStream

_HEAD_BYTES = 1 << 16
_MAX_TAGS = 8
_MAX_CHUNKS = 256
_MAX_OGG_PAGE = 65_307
# Sizes from here on are what writers to a pipe put for "unknown".
_UNKNOWN_SIZE = 0x7FFF_0000

# Formats for PyAV that are worth naming in an error: offset, magic, name.
_NAMED = (
    (4, b"ftyp", "MP4/M4A"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska/WebM"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA/ASF"),
    (0, b"#!AMR", "AMR"),
    (0, b"FLV", "FLV"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
)


@dataclass(frozen=True, slots=True)
class _Chunks:
    """How a container of chunks is laid out: where the first is, name and size, the audio's name."""

    first: int
    header: str
    audio: bytes
    align: int = 2
    counts_header: bool = False


_RIFF = _Chunks(12, "<4sI", b"data")
_RIFX = _Chunks(12, ">4sI", b"data")
_AIFF = _Chunks(12, ">4sI", b"SSND")
_CAF = _Chunks(8, ">4sq", b"data", align=1)
_W64 = _Chunks(40, "<16sq", b"data", align=8, counts_header=True)


@dataclass(frozen=True, slots=True)
class Container:
    """What the first bytes tell.

    Attributes:
        name: "WAV", "FLAC", ...; "" when unknown.
        native: libsndfile reads it.
        states_length: the length that the decoder reports comes from the header, not from a guess.
        stated_over_present: bytes of audio that the header states over bytes that the file has.
        may_be_cut: the stream lacks its end mark.
    """

    name: str = ""
    native: bool = False
    states_length: bool = True
    stated_over_present: float = 1.0
    may_be_cut: bool = False


def identify(stream: ByteStream) -> Container:
    """Look at ``stream``; an MP3 is rebased to its first frame."""
    head, start = _head_behind_tags(stream)
    if head[8:12] == b"WAVE" and head[:4] in (b"RIFF", b"RF64"):
        return Container("WAV", True, stated_over_present=_chunk_ratio(stream, start, _RIFF))
    if head[8:12] == b"WAVE" and head[:4] == b"RIFX":
        return Container("WAV", True, stated_over_present=_chunk_ratio(stream, start, _RIFX))
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return Container("AIFF", True, stated_over_present=_chunk_ratio(stream, start, _AIFF))
    if head[:4] == b".snd":
        return Container("AU", True, stated_over_present=_au_ratio(stream, head, start))
    if head[:4] == b"fLaC":
        return Container("FLAC", True)
    if head[:4] == b"caff":
        return Container("CAF", True, stated_over_present=_chunk_ratio(stream, start, _CAF))
    if head[:8] == b"riff\x2e\x91\xcf\x11":
        return Container("W64", stated_over_present=_chunk_ratio(stream, start, _W64))
    if head[:4] == b"OggS":
        return Container("OGG", True, may_be_cut=not _ogg_ends(stream))
    for offset, magic, name in _NAMED:
        if head[offset:].startswith(magic):
            return Container(name)
    return _identify_mpeg(stream, head, start)


def _head_behind_tags(stream: ByteStream) -> tuple[bytes, int]:
    """The first bytes behind any ID3v2 tags, and where they are."""
    start = 0
    head = b""
    for _ in range(_MAX_TAGS):
        stream.seek(start)
        head = stream.read(_HEAD_BYTES)
        if head[:3] != b"ID3" or len(head) < 10 or max(head[6:10]) > 127:
            break
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte
        behind = start + 10 + size + (10 if head[5] & 0x10 else 0)
        if behind >= stream.size:
            break
        start = behind
    return head, start


def _identify_mpeg(stream: ByteStream, head: bytes, start: int) -> Container:
    found = mpeg.find_first_frame(head, at_end=start + len(head) >= stream.size)
    if found is None:
        if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
            return Container("AAC")
        return Container()
    offset, frame = found
    stated = mpeg.states_length(head, offset, frame)
    left = stream.size - start - offset
    stream.rebase(start + offset, b"" if stated else mpeg.unbounded_xing_frame(frame, left))
    return Container("MP3", True, states_length=stated)


def _chunk_ratio(stream: ByteStream, start: int, layout: _Chunks) -> float:
    """Stated over present bytes of the audio chunk."""
    offset = start + layout.first
    header = struct.Struct(layout.header)
    long_size = 0
    for _ in range(_MAX_CHUNKS):
        stream.seek(offset)
        chunk = stream.read(header.size + 16)
        if len(chunk) < header.size:
            break
        name, size = header.unpack_from(chunk)
        if layout.counts_header:
            size -= header.size
        if name == b"ds64" and len(chunk) == 24:  # RF64 keeps the long sizes apart
            long_size = struct.unpack_from("<8xQ", chunk, header.size)[0]
        if name[:4] == layout.audio:
            if size == 0xFFFF_FFFF and long_size:
                size = long_size
            elif size < 0 or (header.size == 8 and size >= _UNKNOWN_SIZE):
                return 1.0
            return _ratio(size, stream.size - offset - header.size)
        if size < 0:
            break
        offset += header.size + size + -(header.size + size) % layout.align
    return 1.0


def _au_ratio(stream: ByteStream, head: bytes, start: int) -> float:
    if len(head) < 12:
        return 1.0
    offset, size = struct.unpack(">II", head[4:12])
    return _ratio(size, stream.size - start - offset) if size < _UNKNOWN_SIZE else 1.0


def _ratio(stated: int, present: int) -> float:
    return max(1.0, stated / present) if present > 0 else 1.0


def _ogg_ends(stream: ByteStream) -> bool:
    """Whether the last Ogg page carries the end-of-stream flag (RFC 3533)."""
    stream.seek(max(0, stream.size - _MAX_OGG_PAGE))
    tail = stream.read(_MAX_OGG_PAGE)
    page = tail.rfind(b"OggS")
    return page >= 0 and len(tail) > page + 5 and bool(tail[page + 5] & 4)
