"""Samples of a model's answers say what they are of, and leave out what cannot be asked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from afnext.evaluation.samples import LEARNT, write_samples
from afnext.training.data.entries import Entries
from afnext.training.data.sources import Source

pytestmark = pytest.mark.slow


def record(question: str, sound: object = None, **more: object) -> dict[str, object]:
    said = [{"from": "human", "value": question}, {"from": "gpt", "value": "Yes."}]
    return {"sound": sound, "conversations": said, **more}


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Records of every sort: about none, one, two recordings; one with turns, one that is opened by the
    system, and two whose recordings are missing and too long."""
    for name, seconds in (("a", 1), ("b", 1), ("c", 1), ("d", 1), ("long", 12)):
        soundfile.write(tmp_path / f"{name}.wav", np.zeros(16_000 * seconds), 16_000)
    turns = record("First", "c.wav")
    turns["conversations"] += record("Second")["conversations"]
    opened = record("Never", "d.wav")
    opened["conversations"].insert(0, {"from": "system", "value": "Be brief."})
    records = [
        record("About one", "a.wav"), record("<sound-1><sound-2>About two", ["a.wav", "b.wav"]),
        record("About none"), turns, opened, record("About what is gone", "gone.wav", duration=1.0),
        record("About much", "long.wav"),
    ]  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps(records))
    return Source(tmp_path / "mine.json")


@pytest.mark.parametrize("held_out", [False, True])
def test_they_say_whether_they_are_of_training(
    tiny: Path, source: Source, tmp_path: Path, held_out: bool
) -> None:
    path = tmp_path / "samples.md"
    write_samples(tiny, {"mine": source}, path, 10.0, held_out)
    lines = path.read_text().splitlines()
    if not held_out:
        assert lines[:2] == [LEARNT, ""]
        lines = lines[2:]
    assert lines[:2] == ["| recording | question | answer | truth |", "|-|-|-|-|"]
    rows = [re.split(r" *(?<!\\)\| *", line)[1:-1] for line in lines[2:]]
    assert sorted((row[0], row[1]) for row in rows) == [
        ("", "About none"),
        ("mine\\|a.wav", "About one"),
        ("mine\\|a.wav + mine\\|b.wav", "About two"),
        ("mine\\|c.wav", "First"),
    ]
    assert {row[3] for row in rows} == {"Yes."}


def test_of_nothing_that_can_be_asked_nothing_is_written(
    tiny: Path, source: Source, tmp_path: Path
) -> None:
    source.entries = Entries()
    write_samples(tiny, {"mine": source}, tmp_path / "samples.md", 10.0)
    assert not (tmp_path / "samples.md").exists()
