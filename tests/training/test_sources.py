"""Sources: what lies in files and shards comes as it stands there, and what is broken is named."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from afnext.errors import AfnextError, AudioError
from afnext.training.data.conversations import TooManyBroken, conversation
from afnext.training.data.entries import Entry, Place
from afnext.training.data.shards import Recording, write_shard
from afnext.training.data.sources import Source

RATE = 16_000


def record(question: str, answer: str, sound: Any = None, duration: float | None = None) -> dict:
    sounds = [] if sound is None else [sound] if isinstance(sound, str) else sound
    tags = (
        "<sound>\n"
        if len(sounds) == 1
        else "".join(f"<sound-{i + 1}>\n" for i in range(len(sounds)))
    )
    turns = [{"from": "human", "value": tags + question}, {"from": "gpt", "value": answer}]
    found: dict[str, Any] = {"conversations": turns}
    if sound is not None:
        found |= {"sound": sound, "duration": duration}
    return found


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in records))
    return path


def wave(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


RECORDS = [
    record("What barks?", "A dog.", "a-0.tar/0.wav", 2.0),
    record("Two and two?", "Four."),
    record("Is there a cat?", "No.", "a-0.tar/0.wav", 2.0),
    record("Same?", "No.", ["a-0.tar/0.wav", "a-0.tar/1.wav"], 5.0),
    record("What rings?", "A bell.", "a-0.tar/1.wav", 3.0),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two recordings of 2 and 3 s in a shard, five records."""
    write_shard(
        tmp_path / "a-0.tar", [Recording("0", wave(2.0), RATE), Recording("1", wave(3.0, 1), RATE)]
    )
    lines(tmp_path / "a-0.conversations.jsonl", *RECORDS)
    return tmp_path


def test_records_of_one_recording_are_one_entry(folder: Path) -> None:
    """What hears it alone; text and what hears several are entries of their own."""
    source = Source(folder)
    found = {
        tuple(c.turns[1].text for c in source.conversations(e, range(len(e.records)))): e.seconds
        for e in source.entries
    }
    assert found == {
        ("A dog.", "No."): 2.0, ("A bell.",): 3.0, ("Four.",): 0.0, ("No.",): 5.0,
    }  # fmt: skip


def test_records_come_as_they_stand_in_their_files(tmp_path: Path) -> None:
    """Also between blank lines and after letters of several bytes."""
    umlauts = record("Wie heißt er?", "Müller\u2028Jürgen.", "ä.wav", 1.0)
    path = tmp_path / "x.jsonl"
    text = "\n\n".join(json.dumps(r, ensure_ascii=False) for r in (umlauts, RECORDS[1], umlauts))
    path.write_text(text, encoding="utf-8")
    source = Source(path)
    for entry in source.entries:
        for item in source.conversations(entry, range(len(entry.records))):
            wanted = RECORDS[1] if not item.sounds else umlauts
            assert item.turns == conversation(wanted).turns
    assert sum(len(e.records) for e in source.entries) == 3


def test_several_files_of_a_folder_are_one_source(folder: Path) -> None:
    lines(folder / "b.conversations.jsonl", record("B?", "Yes.", "a-0.tar/1.wav", 3.0))
    lines(folder / "notes.jsonl", "not for training")
    source = Source(folder)
    assert [f.name for f in source.files] == ["a-0.conversations.jsonl", "b.conversations.jsonl"]
    texts = [c.turns[1].text for e in source.entries for c in source.conversations(e, [0])]
    assert texts.count("Yes.") == 1


def test_recordings_are_read_from_shards_and_files(folder: Path, tmp_path: Path) -> None:
    source = Source(folder)
    (window,) = source.windows("a-0.tar/1.wav")
    assert window.valid_samples == 3 * RATE
    assert np.abs(np.asarray(window.samples)[: 3 * RATE] - wave(3.0, 1)).max() <= 1 / 32768
    (folder / "clips").mkdir()
    soundfile.write(folder / "clips" / "long.flac", wave(31.0), RATE)
    assert [w.valid_samples for w in source.windows("clips/long.flac")] == [30 * RATE, RATE]
    elsewhere = Source(lines(tmp_path / "x.jsonl", record("A?", "B.", "long.flac", 31.0)),
                       root=folder / "clips")  # fmt: skip
    assert len(elsewhere.windows("long.flac")) == 2


def test_recordings_that_cannot_be_read_are_named(folder: Path) -> None:
    source = Source(folder)
    with pytest.raises(AudioError, match=r"a-0.tar has no 7.wav"):
        source.windows("a-0.tar/7.wav")
    with pytest.raises(AfnextError, match=r"cannot open .*b.index.json: No such file"):
        source.windows("b.tar/0.wav")
    with pytest.raises(AudioError, match=r"nowhere.wav"):
        source.windows("nowhere.wav")
    (folder / "text.wav").write_text("no sound")
    with pytest.raises(AudioError, match=r"text.wav"):
        source.windows("text.wav")
    write_shard(folder / "c.tar", [Recording("0", wave(1.0), 44_100)])
    with pytest.raises(AudioError, match=r"c.tar/0.wav has 44100 Hz; .* need 16000"):
        source.windows("c.tar/0.wav")


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("{'a': 1}", "a line is no JSON"),
        (record("A?", ""), "an answer is empty"),
        (record("A?", "B.", "a.wav"), "a recording cannot be read"),
        (record("<sound>A?", "B."), "a tag has no sound"),
        ("[]", "a record must be an object"),
    ],
)  # fmt: skip
def test_broken_records_end_it_or_are_counted(broken: Any, why: str, tmp_path: Path) -> None:
    good = record("What?", "A dog.", "a.wav", 1.0)
    path = lines(tmp_path / "x.jsonl", good, broken, good, broken)
    with pytest.raises(TooManyBroken, match=rf"^1 sample .* is 0; the last one: x.jsonl, .*{why}"):
        Source(path)
    source = Source(path, broken_limit=2)
    assert [len(e.records) for e in source.entries] == [2]
    assert source.skipped.counts == {why: 2}
    assert all(str(error).startswith("x.jsonl, ") for error in source.skipped.errors)
    with pytest.raises(TooManyBroken, match=rf"2 samples .* is 1; .*: x.jsonl, .*{why}") as caught:
        Source(path, broken_limit=1)
    assert [error.kind for error in pickle.loads(pickle.dumps(caught.value)).errors] == [why, why]
    with pytest.raises(AfnextError, match="no conversations at"):
        Source(lines(path, broken), broken_limit=9)


def test_a_list_of_records_as_published_is_a_source(tmp_path: Path) -> None:
    """Lines and lists give the same; durations that a record leaves out are those of its recordings."""
    soundfile.write(tmp_path / "a.wav", np.zeros(24_000), 16_000)
    soundfile.write(tmp_path / "b.wav", np.zeros(8_000), 16_000)
    records = [
        record("What?", "A dog.", "a.wav", 1.5),
        {"sound": "a.wav", "conversations": record("And?", "A cat.", "a.wav", 1.0)["conversations"]},
        {"sound": ["a.wav", "b.wav"], "conversations": [
            {"from": "human", "value": "<sound-1><sound-2>Same?"}, {"from": "gpt", "value": "No."}]},
    ]  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps(records, indent=1))
    listed, lined = Source(tmp_path / "x.json"), Source(lines(tmp_path / "x.jsonl", *records))
    for one, other in zip(listed.entries, lined.entries, strict=True):
        assert (one.seconds, one.characters) == (other.seconds, other.characters)
        every = range(len(one.records))
        said = [
            [c.turns for c in s.conversations(e, every)] for s, e in ((listed, one), (lined, other))
        ]
        assert said[0] == said[1]
    assert sorted(e.seconds for e in listed.entries) == [1.5, 2.0]


def test_sources_without_anything_are_named(tmp_path: Path) -> None:
    with pytest.raises(AfnextError, match=f"no conversations at {tmp_path}"):
        Source(tmp_path)
    with pytest.raises(
        AfnextError, match=r"cannot read conversations from .*x.jsonl: No such file"
    ):
        Source(tmp_path / "x.jsonl")


def test_an_entry_knows_about_how_many_tokens_it_takes() -> None:
    """25 a second of audio, one for three characters, a dozen for each record's frame."""
    entry = Entry((Place(0, 0, 1),) * 3, 4.0, (30, 60, 90))
    assert entry.tokens([0, 2]) == 100 + 10 + 12 + 30 + 12
    assert entry.tokens([]) == 100
