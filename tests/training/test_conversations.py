"""Conversations: published files are read as they are, and what they leave open is named, never guessed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnext.errors import AfnextError
from afnext.training.data.conversations import (
    Conversation,
    RecordError,
    Skipped,
    Sound,
    Turn,
    conversation,
    read,
    write,
)


def said(*values: Any, **fields: Any) -> dict[str, Any]:
    """A record as it is published: human and gpt in turn."""
    turns = [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]
    return {"conversations": turns, **fields}


ONE = said("<sound>\nWhat barks?", "A dog.", id="17", sound="dogs/3.wav", duration=8.0)


def test_one_recording() -> None:
    """As in Audio Flamingo 3's single-audio files: the tag has a line of its own."""
    assert conversation(ONE) == Conversation(
        "17",
        (Turn("user", (Sound("dogs/3.wav"), "What barks?")), Turn("assistant", ("A dog.",))),
        8.0,
    )


def test_several_turns_are_all_kept() -> None:
    """Audio Flamingo 3's own loader keeps the first two of a record whose sound is a string."""
    item = conversation(said("<sound>\nA?", "B.", "C?", "D.", "E?", "F.", sound="a.wav"))
    assert [turn.text for turn in item.turns] == ["A?", "B.", "C?", "D.", "E?", "F."]
    assert item.sounds == ("a.wav",)
    assert item.duration is None


def test_several_recordings_are_heard_where_their_tags_stand() -> None:
    """Numbered from 1, in any turn and any order."""
    item = conversation(
        said("<sound-2>\n<sound-1>\nSame?", "No.", "And <sound-3>?", "Yes.", sound=["a", "b", "c"])
    )
    assert item.turns[0].parts == (Sound("b"), Sound("a"), "Same?")
    assert item.turns[2].parts == ("And ", Sound("c"), "?")
    assert item.sounds == ("b", "a", "c")


@pytest.mark.parametrize("sound", ["a.wav", ["a.wav"]])
@pytest.mark.parametrize("tag", ["<sound>\n", "<sound>", "<sound-1>\n", ""])
def test_a_single_recording_may_be_named_in_every_way(sound: Any, tag: str) -> None:
    """A string or a list of one, a plain or a numbered tag, or none: then it is heard first."""
    item = conversation(said(f"{tag}What barks?", "A dog.", "Sure?", "Yes.", sound=sound))
    assert item.turns[0].parts == (Sound("a.wav"), "What barks?")
    assert item.sounds == ("a.wav",)


@pytest.mark.parametrize("fields", [{}, {"sound": None}, {"sound": []}])
def test_text_alone(fields: dict[str, Any]) -> None:
    """Audio Flamingo 3's own loader fails on it, with the key and without."""
    item = conversation(said("Two and two?", "Four.", **fields))
    assert item.sounds == ()
    assert item.turns[0].parts == ("Two and two?",)


def test_a_system_turn_comes_first_and_other_names_of_roles_are_known() -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "user", "value": "<sound>\nWhat?"},
        {"from": "assistant", "value": "A dog."},
    ]
    item = conversation({"conversations": turns, "sound": "a.wav"})
    assert [t.role for t in item.turns] == ["system", "user", "assistant"]
    del turns[1]
    turns.insert(1, {"from": "human", "value": "What?"})
    untagged = conversation({"conversations": turns, "sound": "a.wav"})
    assert untagged.turns[1].parts == (Sound("a.wav"), "What?")  # not in the system's turn


TURN = {"from": "human", "value": "Hm?"}
ANSWER = {"from": "gpt", "value": "Yes."}
WRONG = [
    # What the published loaders let pass in silence, or fail on without a word.
    (said("Same?", "No.", sound=["a", "b"]),
     'tags must name each sound once, as "<sound-1>", "<sound-2>", ..: a'),
    (said("<sound-1>\nSame?", "No.", sound=["a", "b"]), "tags must name each sound once, as"),
    (said("<sound-1><sound-1>?", "No.", sound=["a", "b"]), "tags must name each sound once"),
    (said("<sound><sound>?", "No.", sound="a"), "tags must name each sound once: a"),
    (said("<sound>\nSame?", "No.", sound=["a", "b"]),
     'turn 1: a list of sounds needs numbered tags, "<sound-1>", "<sound-2>", ..: <sound>'),
    (said("<sound>\nWhat?", "A dog."), "turn 1: a tag has no sound: <sound>"),
    (said("<sound>\nWhat?", "A dog.", sound=[]), "turn 1: a tag has no sound: <sound>"),
    (said("What?", "A.", "<sound-2>?", "B.", sound="a"), "turn 3: a tag has no sound: <sound-2>"),
    (said("<sound-0>?", "A.", sound=["a", "b"]), "a tag has no sound: <sound-0>"),
    (said("What?", "A dog, see <sound>.", sound="a"), "only the human's turns hold sounds"),
    (said("<sound>\nWhat?", "", sound="a"), "an answer is empty"),
    (said("<sound>\nWhat?", " \n", sound="a"), "an answer is empty"),
    (said("What?", "A.", "And?"), "turns must alternate, human first and gpt last: user, assistant, user"),
    ({"conversations": [ANSWER, TURN]}, "turns must alternate"),
    ({"conversations": [TURN, TURN, ANSWER]}, "turns must alternate"),
    ({"conversations": [TURN, ANSWER, ANSWER]}, "turns must alternate"),
    ({"conversations": [{"from": "system", "value": "Hm."}]}, "turns must alternate"),
    ({"conversations": [TURN, {"from": "system", "value": "Hm."}, ANSWER]}, "only the first turn"),
    ({"conversations": []}, "conversations must be a list of turns"),
    ({"conversations": {"0": TURN}}, "conversations must be a list of turns"),
    ({"id": "3"}, "conversations must be a list of turns"),
    ({"conversations": [{"from": "tool", "value": "x"}]}, "'from' must be human or gpt: 'tool'"),
    ({"conversations": [{"value": "x"}]}, "'from' must be human or gpt: None"),
    ({"conversations": ["What?"]}, "turn 1: a turn needs 'from' and a string 'value'"),
    (said("What?", None), "turn 2: a turn needs 'from' and a string 'value'"),
    (said("What?", ["A dog."]), "turn 2: a turn needs 'from' and a string 'value'"),
    (said("What?", "A.", sound=""), "sound must be a path or a list of paths: ''"),
    (said("What?", "A.", sound={"path": "a"}), "sound must be a path or a list of paths"),
    (said("What?", "A.", sound=["a", None]), "sound must be a path or a list of paths"),
    (said("What?", "A.", duration="8"), "duration must be a positive number of seconds: '8'"),
    (said("What?", "A.", duration=0), "duration must be a positive number of seconds: 0"),
    (said("What?", "A.", duration=float("nan")), "duration must be a positive number"),
    (said("What?", "A.", duration=float("inf")), "duration must be a positive number"),
    ("What?", "a record must be an object: got str"),
    (None, "a record must be an object: got NoneType"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "why"), WRONG, ids=[why for _, why in WRONG])
def test_what_is_wrong_is_named_with_its_place(record: Any, why: str) -> None:
    with pytest.raises(RecordError) as caught:
        conversation(record, "chat.json, record 7")
    assert str(caught.value).startswith("chat.json, record 7")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_survives_the_way_from_a_worker() -> None:
    error = RecordError("an answer is empty", "line 3", "x")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "line 3: an answer is empty: x"
    assert again.kind == error.kind


RECORDS = [
    ONE,
    said("Two and two?", "Four.\nReally."),
    said("<sound-1><sound-2>?", "No.", sound=["a", "b"]),
]
MANIFEST: dict[str, Any] = {
    "dataset_path": "clotho", "split": "train", "flamingo_task": "AQA", "total_num": 2,
    "data": {
        "0": {"name": "1.wav", "prompt": "Is it raining?", "output": "yes"},
        "5": {"name": "x/2.wav", "prompt": "Count.", "output": "three", "extra": 1},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2),
        "[" + ",\n".join(map(json.dumps, RECORDS)) + "]\n",
        "\n".join(map(json.dumps, RECORDS)),
        "\n\n".join(map(json.dumps, RECORDS)) + "\n\n",
        "\ufeff" + "\r\n".join(map(json.dumps, RECORDS)),
    ],
    ids=["list", "indented", "line a record in a list", "lines", "blank lines", "as Windows saves it"],
)  # fmt: skip
def test_lists_and_lines_are_read_alike(text: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    path.write_bytes(text.encode())
    found = list(read(path))
    assert [item.turns for item in found] == [conversation(r).turns for r in RECORDS]
    assert found[0].id == "17"
    assert found[1].id.startswith("chat.json, ")  # the place, where the record has no id


@pytest.mark.parametrize("indent", [None, 2])
def test_a_single_record_is_a_file_too(indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(ONE, indent=indent))
    assert list(read(path)) == [conversation(ONE)]


def test_a_list_as_the_data_of_a_manifest_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"data": [ONE]}))
    with pytest.raises(
        AfnextError, match=f"^{path}: data must be an object .*, got a list; a list of conv"
    ):
        list(read(path))


@pytest.mark.parametrize("indent", [None, 2])
def test_manifests_of_audio_flamingo_2_are_read(indent: int | None, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(MANIFEST, indent=indent))
    assert list(read(path)) == [
        Conversation("0", (Turn("user", (Sound("clotho/1.wav"), "Is it raining?")),
                           Turn("assistant", ("yes",)))),
        Conversation("5", (Turn("user", (Sound("clotho/x/2.wav"), "Count.")),
                           Turn("assistant", ("three",)))),
    ]  # fmt: skip
    manifest = {"data": MANIFEST["data"]}
    path.write_text(json.dumps(manifest))
    assert [item.sounds for item in read(path)] == [("1.wav",), ("x/2.wav",)]


def test_lines_end_where_json_ends_them(tmp_path: Path) -> None:
    """A text may hold what Python, but not JSON, takes for the end of a line."""
    text = "One\u2028two\x85three"
    path = tmp_path / "a.jsonl"
    write(path, [conversation(said("What?", text))] * 2)
    assert text in path.read_text(encoding="utf-8")
    assert [item.turns[1].text for item in read(path)] == [text, text]


def test_records_that_cannot_be_read_are_counted_or_end_it(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    broken = [said("What?", ""), said("<sound>?", "A."), said("And?", "  ")]
    path.write_text("\n".join(map(json.dumps, [ONE, *broken, RECORDS[1]])))
    skipped = Skipped()
    assert [item.turns[-1].text for item in read(path, skipped)] == ["A dog.", "Four.\nReally."]
    assert skipped.counts == {"an answer is empty": 2, "a tag has no sound": 1}
    assert str(skipped).splitlines() == [
        "2 x chat.jsonl, line 2: an answer is empty",
        "1 x chat.jsonl, line 3, turn 1: a tag has no sound: <sound>",
    ]
    with pytest.raises(RecordError, match="line 2: an answer is empty"):
        list(read(path))


def test_broken_entries_of_a_manifest_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    broken = {"8": {"name": "a.wav", "prompt": "What?"}, "9": 7}
    path.write_text(json.dumps({"data": broken | MANIFEST["data"]}))
    skipped = Skipped()
    assert len(list(read(path, skipped))) == 2
    assert skipped.counts == {"a manifest's entry needs name, prompt and output": 2}
    with pytest.raises(RecordError, match=r"train.json, 8: .*name, prompt and output"):
        list(read(path))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[{", "is no JSON: .* at line 1, column 3"),
        (b"{\n\n}}", "is no JSON"),
        (json.dumps(ONE).encode() + b"\n{'id': 3}\n", "is no JSON: .* at line 2, column 2"),
        (b"\xff\xfe", "cannot read conversations from .*a.json"),
    ],
)
def test_a_file_that_is_no_json_is_named(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(AfnextError, match=why):
        list(read(path, Skipped()))
    with pytest.raises(AfnextError, match="cannot read conversations from"):
        list(read(tmp_path / "nowhere.json"))


def test_an_empty_file_has_no_conversations(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(" \n")
    assert list(read(tmp_path / "a.json")) == []


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(
    lambda text: "<sound" not in text
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Any that can be written: sounds before, within and behind the human's texts."""
    turns = [Turn("system", (draw(TEXTS),))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        parts: list[str | Sound] = []
        for _ in range(draw(st.integers(0, 3))):
            sound = draw(st.booleans())
            if sound or (parts and isinstance(parts[-1], str)):
                parts.append(Sound(draw(st.sampled_from(["a.wav", "b/ü.flac", "s.tar/0.wav"]))))
            else:
                parts.append(draw(TEXTS))
        turns.append(Turn("user", tuple(parts)))
        turns.append(Turn("assistant", (draw(TEXTS.filter(str.strip)),)))
    turns = [Turn(t.role, tuple(p for p in t.parts if p != "")) for t in turns]
    duration = draw(st.none() | st.floats(0.1, 1e4))
    return Conversation(draw(TEXTS), tuple(turns), duration, draw(TEXTS))


@given(items=st.lists(conversations(), min_size=1, max_size=4))
def test_what_is_written_is_read_back(
    items: list[Conversation], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.jsonl"
    assert write(path, items) == len(items)
    assert list(read(path)) == items


def test_the_written_form_is_the_published_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, map(conversation, RECORDS))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == ONE
    assert lines[1]["conversations"] == RECORDS[1]["conversations"]
    assert "sound" not in lines[1]
    assert lines[2]["sound"] == ["a", "b"]
    assert lines[2]["conversations"][0]["value"] == "<sound-1>\n<sound-2>\n?"
