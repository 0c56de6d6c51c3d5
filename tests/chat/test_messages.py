"""A message holds what was given, and refuses what no model could be given."""

from __future__ import annotations

import base64
import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnext.chat import Message, as_messages
from afnext.errors import ChatError

WAV = b"RIFF...."


@pytest.mark.parametrize(
    "audio", ["a.wav", Path("a.wav"), WAV, np.zeros(3), (np.zeros(3), 16_000)], ids=str
)
def test_one_recording_needs_no_list(audio: object) -> None:
    assert Message("user", audio=audio).audio == (audio,)
    assert len(Message("user", audio=[audio, "b.wav"]).audio) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("tool", "x"), "role"),
        (("user",), "needs text or audio"),
        (("user", 3), "text"),
        (("user", "\ud800"), "Unicode"),
        (("assistant", "x", ["a.wav"]), "only a user"),
        (("user", "x", [3]), "int"),
        (("user", "x", [""]), "empty path"),
        (("user", "x", [b""]), "empty bytes"),
        (("user", "x", ["a\0b"]), "null"),
    ],
)
def test_refusals_name_the_argument(arguments: tuple, says: str) -> None:
    with pytest.raises(ChatError, match=says):
        Message(*arguments)


def test_openai_parts_keep_their_order() -> None:
    data = base64.b64encode(WAV).decode()
    message = Message.from_openai(
        {
            "role": "user",
            "content": [
                {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
                {"type": "text", "text": "Same "},
                {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}},
                {"type": "audio", "path": "c.wav"},
                {"type": "text", "text": "song?"},
            ],
        },
        allow_paths=True,
    )
    assert message == Message("user", "Same song?", [WAV, WAV, "c.wav"])


@pytest.mark.parametrize(
    "part",
    [
        {"type": "audio", "path": "/etc/passwd"},
        {"type": "audio", "audio": Path("/etc/passwd")},
        {"type": "audio_url", "audio_url": {"url": "file:///etc/passwd"}},
        {"type": "audio_url", "audio_url": {"url": "http://localhost/a.wav"}},
        {"type": "input_audio", "input_audio": {"data": "not base64!"}},
        {"type": "image_url", "image_url": {}},
        {"type": "audio"},
        {"type": "text"},
        "text",
    ],
    ids=str,
)
def test_a_stranger_cannot_name_files_or_addresses(part: object) -> None:
    with pytest.raises(ChatError):
        Message.from_openai({"role": "user", "content": [part]})


def test_a_rate_may_be_any_number_and_is_no_recording() -> None:
    samples = np.zeros(16_000, np.float32)
    for rate in (16_000, 16_000.0, np.int64(16_000), np.int32(16_000), np.float32(16_000)):
        assert len(Message("user", "Hi", (samples, rate)).audio) == 1
        assert len(Message("user", "Hi", [(samples, rate), samples]).audio) == 2
    for audio in ([np.int64(16_000)], (samples, samples, np.int32(3)), (np.float32(1), 16_000)):
        with pytest.raises(ChatError, match="audio must be a path, bytes, an array"):
            Message("user", "Hi", audio)


def test_conversations() -> None:
    assert as_messages("Hi") == [Message("user", "Hi")]
    assert as_messages([{"role": "user", "content": "Hi"}]) == [Message("user", "Hi")]
    assert as_messages({"role": "user", "content": "Hi"}) == [Message("user", "Hi")]
    with pytest.raises(ChatError, match="at least one"):
        as_messages([])
    with pytest.raises(ChatError, match="must be a question or messages, got int"):
        as_messages(5)  # type: ignore[arg-type]
    with pytest.raises(ChatError, match="first"):
        as_messages([Message("user", "Hi"), Message("system", "Be brief.")])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "text", "role", "content", "audio", "input_audio", "data", "url"]
            ),
            inner | st.sampled_from(["audio", "text", "input_audio", "audio_url", "user"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_read_or_refused(value: object) -> None:
    with contextlib.suppress(ChatError):
        Message.from_openai(value)
