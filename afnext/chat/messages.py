"""What is said: messages with their audio, checked when they are made."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

from afnext.errors import ChatError

AudioSource: TypeAlias = Any
"""A path, the bytes of an audio file, an array of samples, or a pair ``(samples, rate)``."""

NO_PATHS = (
    "a message's parts name no files of this machine, unless as_messages(.., allow_paths=True) reads them: "
    "send the audio as base64, or Message(role, text, audio=path)"
)
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True, init=False)
class Message:
    """One turn of a conversation.

    In every turn the recordings come before the text, in the order given: that is what the released
    models were trained on.

    Args:
        role: "system", "user" or "assistant".
        text: what is said; it is never read as a control token.
        audio: one recording or a sequence of them: a path, the bytes of a file, an array of samples
            (any object with ``shape``), or a pair ``(samples, rate)``. Only a user speaks in audio.

    Raises:
        ChatError: an unknown role, an empty user message, text that is no valid Unicode, audio of
            another kind or in another role.
    """

    role: str
    text: str
    audio: tuple[AudioSource, ...]

    def __init__(
        self, role: str, text: str = "", audio: AudioSource | Sequence[AudioSource] = ()
    ) -> None:
        if role not in ROLES:
            raise ChatError(f"Message: role must be one of {', '.join(ROLES)}, got {role!r}")
        if not isinstance(text, str):
            raise ChatError(f"Message: text must be a string, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ChatError(f"Message: text is not valid Unicode: {error.reason}") from None
        sources = tuple(audio) if isinstance(audio, list) or _is_several(audio) else (audio,)
        for source in sources:
            _check_source(source)
        if sources and role != "user":
            raise ChatError(f"Message: only a user's message holds audio, got role {role!r}")
        if role == "user" and not (text or sources):
            raise ChatError("Message: a user's message needs text or audio")
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "text", text)
        object.__setattr__(self, "audio", sources)

    @classmethod
    def from_openai(cls, message: Mapping[str, Any], *, allow_paths: bool = False) -> Message:
        """Read a chat-completions message: ``{"role": ..., "content": str | list of parts}``.

        Parts are ``{"type": "text", "text": ...}``, ``{"type": "input_audio", "input_audio":
        {"data": base64, ...}}``, ``{"type": "audio_url", "audio_url": {"url": "data:...;base64,..."}}``
        and transformers' ``{"type": "audio", "audio" | "path": source}``. Texts are joined as they are.

        Args:
            allow_paths: whether a part may name a file of this machine. A service that reads messages
                of strangers leaves it off. Nothing is ever fetched from the network.

        Raises:
            ChatError: a missing or unknown field, broken base64, or a source that is not allowed.
        """
        if not isinstance(message, Mapping):
            raise ChatError(f"a message must be an object, got {type(message).__name__}")
        content = message.get("content")
        if content is None:
            content = ""
        if isinstance(content, str):
            return cls(message.get("role", ""), content)
        if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray):
            raise ChatError("a message's content must be a string or a list of parts")
        texts: list[str] = []
        audio: list[AudioSource] = []
        for part in content:
            if not isinstance(part, Mapping):
                raise ChatError(f"a content part must be an object, got {type(part).__name__}")
            kind = part.get("type")
            if kind in ("text", "input_text"):
                text = part.get("text")
                if not isinstance(text, str):
                    raise ChatError("a text part needs a string in 'text'")
                texts.append(text)
            elif kind in ("audio", "input_audio", "audio_url"):
                audio.append(_part_source(part, allow_paths))
            else:
                raise ChatError(f"a content part's type must be text or audio, got {kind!r}")
        return cls(message.get("role", ""), "".join(texts), audio)


def as_messages(
    conversation: str | Message | Iterable[Message | Mapping[str, Any]],
    *,
    allow_paths: bool = False,
) -> list[Message]:
    """A conversation from a question, a message, or messages and chat-completions objects.

    Raises:
        ChatError: no message at all, a system message that is not the first, or a message that
            :class:`Message` refuses.
    """
    if isinstance(conversation, str):
        conversation = [Message("user", conversation)]
    elif isinstance(conversation, Message | Mapping):
        conversation = [conversation]
    elif not isinstance(conversation, Iterable):
        kind = type(conversation).__name__
        raise ChatError(f"a conversation must be a question or messages, got {kind}")
    messages = [
        m if isinstance(m, Message) else Message.from_openai(m, allow_paths=allow_paths)
        for m in conversation
    ]
    if not messages:
        raise ChatError("a conversation needs at least one message")
    if any(m.role == "system" for m in messages[1:]):
        raise ChatError("only the first message of a conversation may be the system's")
    return messages


def _is_pair(source: AudioSource) -> bool:
    """``(samples, rate)``."""
    return (
        isinstance(source, tuple)
        and len(source) == 2
        and _is_array(source[0])
        and isinstance(source[1], Real)  # NumPy's numbers too
    )


def _is_array(source: AudioSource) -> bool:
    """Not a number of NumPy's, which has a shape too."""
    return hasattr(source, "shape") and len(source.shape) > 0


def _is_several(audio: AudioSource) -> bool:
    return isinstance(audio, tuple) and not _is_pair(audio)


def _check_source(source: AudioSource) -> None:
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if not path:
            raise ChatError("Message: audio has an empty path")
        if "\0" in str(path):
            raise ChatError("Message: audio has a path with a null character")
    elif isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise ChatError("Message: audio has empty bytes")
    elif not (_is_array(source) or _is_pair(source)):
        raise ChatError(
            "Message: audio must be a path, bytes, an array or (array, rate), "
            f"got {type(source).__name__}"
        )


def _part_source(part: Mapping[str, Any], allow_paths: bool) -> AudioSource:
    """The recording that a content part holds."""
    kind = part["type"]
    source: Any = part.get(kind)
    if kind == "input_audio":
        source = source.get("data") if isinstance(source, Mapping) else source
        if not isinstance(source, str):
            raise ChatError("an input_audio part needs base64 in input_audio.data")
        return _from_base64(source.partition(",")[2] if source.startswith("data:") else source)
    if kind == "audio_url":
        source = source.get("url") if isinstance(source, Mapping) else source
    elif source is None:
        source = next((part[k] for k in ("path", "url") if part.get(k) is not None), None)
    if source is None:
        raise ChatError(f"an {kind} part holds no audio")
    if not isinstance(source, str):
        if isinstance(source, os.PathLike) and not allow_paths:
            raise ChatError(NO_PATHS)
        return source
    if source.startswith("data:"):
        header, _, data = source.partition(",")
        if not header.endswith(";base64"):
            raise ChatError("an audio data URL must be base64: data:audio/wav;base64,...")
        return _from_base64(data)
    if source.startswith(("http://", "https://")):
        raise ChatError("audio is not fetched from the network: send a file or base64")
    if not allow_paths:
        raise ChatError(NO_PATHS)
    return source.removeprefix("file://")


def _from_base64(data: str) -> bytes:
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ChatError(f"audio is not valid base64: {error}") from None
