"""Conversations about audio as Audio Flamingo 3 publishes them: JSON, one record a conversation.

A file is a list of records or has one a line::

    {"id": "17", "sound": "dogs/3.wav", "duration": 8.0,
     "conversations": [{"from": "human", "value": "<sound>\\nWhat barks?"},
                       {"from": "gpt", "value": "A dog."}]}

``sound`` is a path, a list of them, or absent. ``<sound>`` stands where the one recording is heard,
``<sound-1>``, ``<sound-2>``, .. where each of a list is; a single recording that no tag places comes first.
Audio Flamingo 2's manifests (``{"data": {"0": {"name", "prompt", "output"}}}``) are read too.

What a record leaves open is reported, never guessed: a list whose tags do not name each of it exactly once,
a tag without its recording, an unknown speaker, an empty answer.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import inf
from pathlib import Path
from typing import Any

from afnext.errors import AfnextError

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
NUMBERED = '"<sound-1>", "<sound-2>", ..'
TAG = re.compile(r"<sound(?:-(\d+))?>")


@dataclass(frozen=True, slots=True)
class Sound:
    """A recording where it is heard: a path, as the record gives it."""

    path: str


@dataclass(frozen=True, slots=True)
class Turn:
    """``role`` is "system", "user" or "assistant"; ``parts`` are texts and sounds in their order."""

    role: str
    parts: tuple[str | Sound, ...]

    @property
    def text(self) -> str:
        return "".join(part for part in self.parts if isinstance(part, str))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns that end with the assistant's.

    Attributes:
        id: the record's own, else its place in the file.
        turns: at first perhaps the system's, then the user and the assistant in turn.
        duration: seconds of audio, where the record says so.
        task: what kind of question it is, where the record says so.
        where: the record's file and its place there, for messages.
    """

    id: str
    turns: tuple[Turn, ...]
    duration: float | None = None
    task: str = ""
    where: str = field(default="", compare=False)

    @property
    def sounds(self) -> tuple[str, ...]:
        """The paths, in the order in which they are heard."""
        return tuple(p.path for turn in self.turns for p in turn.parts if isinstance(p, Sound))


@dataclass
class Skipped:
    """Records that were left out, counted by what was wrong with them, and the first of each kind.

    ``limit``: how many there may be; then ``errors`` has all of them. None: any number.
    """

    limit: int | None = None
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    errors: list[RecordError] = field(default_factory=list)

    def add(self, error: RecordError) -> None:
        """Raises :class:`TooManyBroken` where there are more than may be."""
        self.counts[error.kind] += 1
        self.examples.setdefault(error.kind, str(error))
        if self.limit is None:
            return
        self.errors.append(error)
        if len(self.errors) > self.limit:
            raise TooManyBroken(self.errors, self.limit)

    def __str__(self) -> str:
        lines = (f"{count} x {self.examples[kind]}" for kind, count in self.counts.most_common())
        return "\n".join(lines)


class RecordError(AfnextError):
    """A record that cannot be read as a conversation. ``kind`` is what is wrong, without the particulars."""

    def __init__(self, kind: str, where: str, particulars: str = "") -> None:
        super().__init__(kind, where, particulars)  # what it is pickled by
        self.kind = kind

    @property
    def where(self) -> str:
        return str(self.args[1])

    @property
    def why(self) -> str:
        """What is wrong, with the particulars, of a record that is named beside it."""
        kind, _, particulars = self.args
        return f"{kind}{': ' + particulars if particulars else ''}"

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class TooManyBroken(AfnextError):
    """More records cannot be read than may be left out. ``errors``: all of them, the last one too."""

    def __init__(self, errors: list[RecordError], limit: int) -> None:
        super().__init__(errors, limit)  # what it is pickled by
        self.errors, self.limit = errors, limit

    def __str__(self) -> str:
        return f"{too_many(len(self.errors), self.limit)}; the last one: {self.errors[-1]}"


def too_many(count: int, limit: int) -> str:
    """How a message begins that says so."""
    what = "sample" if count == 1 else "samples"
    return f"{count} {what} cannot be read, broken_limit is {limit}"


def read(path: str | Path, skipped: Skipped | None = None) -> Iterator[Conversation]:
    """The conversations of a file, in its order.

    Args:
        path: JSON or JSON lines.
        skipped: takes the records that cannot be read; without it the first of them is an error.

    Raises:
        AfnextError: the file cannot be read or is no JSON.
        RecordError: a record is not as the format says, and ``skipped`` is not given.
    """
    path = Path(path)
    for where, record in _records(path):
        try:
            if isinstance(record, RecordError):
                raise record
            yield conversation(record, where)
        except RecordError as error:
            if skipped is None:
                raise
            skipped.add(error)


def conversation(record: Any, where: str = "record") -> Conversation:
    """One record as a conversation; ``where`` begins the messages of errors.

    Raises:
        RecordError: it is not as the format says.
    """
    if not isinstance(record, Mapping):
        raise RecordError("a record must be an object", where, f"got {type(record).__name__}")
    said = record.get("conversations")
    if not isinstance(said, list) or not said:
        raise RecordError("conversations must be a list of turns", where)
    sounds = _sounds(record, where)
    turns = tuple(_turn(item, sounds, f"{where}, turn {i}") for i, item in enumerate(said, 1))
    turns = _placed(turns, sounds, where)
    roles = [turn.role for turn in turns if turn.role != "system"]
    if roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
        raise RecordError("turns must alternate, human first and gpt last", where, ", ".join(roles))
    if any(turn.role == "system" for turn in turns[1:]):
        raise RecordError("only the first turn may be the system's", where)
    for turn in turns:
        if turn.role == "assistant" and not turn.text.strip():
            raise RecordError("an answer is empty", where)
        if turn.role != "user" and any(isinstance(part, Sound) for part in turn.parts):
            raise RecordError("only the human's turns hold sounds", where)
    duration = record.get("duration")
    if duration is not None and not (isinstance(duration, int | float) and 0 < duration < inf):
        raise RecordError("duration must be a positive number of seconds", where, repr(duration))
    return Conversation(
        str(record.get("id", where)), turns, None if duration is None else float(duration),
        str(record.get("task", "")), where,
    )  # fmt: skip


def write(path: str | Path, conversations: Iterable[Conversation]) -> int:
    """One record a line, as :func:`read` takes them; gives how many."""
    count = 0
    with Path(path).open("w", encoding="utf-8") as file:
        for item in conversations:
            file.write(json.dumps(record(item), ensure_ascii=False) + "\n")
            count += 1
    return count


def record(item: Conversation) -> dict[str, Any]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    sounds = item.sounds
    numbers = iter(range(1, len(sounds) + 1))

    def value(turn: Turn) -> str:
        return "".join(
            part if isinstance(part, str)
            else "<sound>\n" if len(sounds) == 1
            else f"<sound-{next(numbers)}>\n"
            for part in turn.parts
        )  # fmt: skip

    made: dict[str, Any] = {"id": item.id}
    if sounds:
        made["sound"] = sounds[0] if len(sounds) == 1 else list(sounds)
    if item.duration is not None:
        made["duration"] = item.duration
    if item.task:
        made["task"] = item.task
    said = [{"from": names[turn.role], "value": value(turn)} for turn in item.turns]
    return made | {"conversations": said}


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Records of a file as they stand there, each with its place; of JSON lines one at a time is held."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = ((i, line) for i, line in enumerate(file, 1) if line.strip())
            first, second = next(lines, None), next(lines, None)
            if first and second and _is_json(first[1]):
                for number, line in chain((first, second), lines):
                    yield f"{path.name}, line {number}", _parse(path, line, number)
                return
            file.seek(0)
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise AfnextError(f"cannot read conversations from {path}: {why}") from None
    if first:
        yield from _whole(path, _parse(path, text))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except json.JSONDecodeError:
        return False
    return True


def _whole(path: Path, content: Any) -> Iterator[tuple[str, Any]]:
    """The records of a file that is one JSON value: a list of them, a manifest or a single one. A manifest's
    entry that is none comes as its error."""
    if isinstance(content, list):
        yield from ((f"{path.name}, record {i}", record) for i, record in enumerate(content, 1))
    elif isinstance(content, Mapping) and "data" in content and "conversations" not in content:
        if not isinstance(content["data"], Mapping):
            raise AfnextError(
                f"{path}: data must be an object of entries with name, prompt and output by id, got a "
                f"{type(content['data']).__name__}; a list of conversations is a file of its own: [..]"
            )
        folder = str(content.get("dataset_path", ""))
        for key, item in content["data"].items():
            where = f"{path.name}, {key}"
            yield where, _from_manifest(key, item, folder, where)
    else:
        yield f"{path.name}, record 1", content


def _parse(path: Path, text: str, line: int = 0) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"line {line or error.lineno}, column {error.colno}"
        raise AfnextError(f"{path} is no JSON: {error.msg} at {at}") from None


def _from_manifest(key: str, item: Any, folder: str, where: str) -> dict[str, Any] | RecordError:
    """An entry of an Audio Flamingo 2 manifest as a record, or what is wrong with it."""
    if not isinstance(item, Mapping) or not {"name", "prompt", "output"} <= set(item):
        return RecordError("a manifest's entry needs name, prompt and output", where)
    said = [{"from": "human", "value": f"<sound>\n{item['prompt']}"},
            {"from": "gpt", "value": item["output"]}]  # fmt: skip
    sound = f"{folder}/{item['name']}" if folder else item["name"]
    return {"id": key, "sound": sound, "conversations": said}


def _sounds(record: Mapping[str, Any], where: str) -> list[str]:
    sound = record.get("sound")
    sounds = [] if sound is None else [sound] if isinstance(sound, str) else sound
    if not isinstance(sounds, list) or not all(isinstance(s, str) and s for s in sounds):
        raise RecordError("sound must be a path or a list of paths", where, repr(sound)[:80])
    return sounds


def _turn(item: Any, sounds: list[str], where: str) -> Turn:
    if not isinstance(item, Mapping) or not isinstance(item.get("value"), str):
        raise RecordError("a turn needs 'from' and a string 'value'", where)
    role = ROLES.get(str(item.get("from")))
    if role is None:
        raise RecordError("a turn's 'from' must be human or gpt", where, repr(item.get("from")))
    parts: list[str | Sound] = []
    text, at = item["value"], 0
    for found in TAG.finditer(text):
        index = int(found[1] or 1) - 1
        if found[1] is None and len(sounds) > 1:
            raise RecordError(f"a list of sounds needs numbered tags, {NUMBERED}", where, found[0])
        if not 0 <= index < len(sounds):
            raise RecordError("a tag has no sound", where, found[0])
        parts += [text[at : found.start()], Sound(sounds[index])]
        at = found.end()
        if text[at : at + 1] == "\n":
            at += 1  # "<sound>\nWhat ..": a line of its own
    parts.append(text[at:])
    return Turn(role, tuple(part for part in parts if part != ""))


def _placed(turns: tuple[Turn, ...], sounds: list[str], where: str) -> tuple[Turn, ...]:
    """With every sound in it once. A single one without a tag is heard before the first question."""
    heard = Counter(p.path for turn in turns for p in turn.parts if isinstance(p, Sound))
    wanted = Counter(sounds)
    if len(sounds) == 1 and not heard:
        first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
        if first is None:
            return turns
        opened = Turn("user", (Sound(sounds[0]), *turns[first].parts))
        return (*turns[:first], opened, *turns[first + 1 :])
    if heard != wanted:
        missing = next(iter((wanted - heard) or (heard - wanted)))
        form = f", as {NUMBERED}" if len(sounds) > 1 else ""
        raise RecordError(f"tags must name each sound once{form}", where, missing)
    return turns
