"""A folder: what counts as a recording, each answered once, failures beside answers, many at once."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from threading import Event

import pytest

from afnext.bulk import Summary, answer_folder, find_recordings
from afnext.bulk.folder import Answer
from afnext.errors import AfnextError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "recordings"
    for name in ("b.wav", "sub/a.MP3", "sub/deep/c.flac", "notes.txt", ".hidden.wav", ".git/d.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def length(path: Path, stop: Event) -> dict:
    """An answer without a model."""
    if path.name == "b.wav":
        raise AfnextError(f"{path}: is broken\nin two lines")
    return {"text": path.name, "usage": {"audio_seconds": 1.0}}


def never() -> Answer:
    raise AssertionError("there is nothing to prepare for")


def test_recordings_are_found_by_suffix(folder: Path) -> None:
    assert find_recordings(folder) == ["b.wav", "sub/a.MP3", "sub/deep/c.flac"]


def test_pipes_are_no_recordings_and_links_to_files_are(folder: Path) -> None:
    os.mkfifo(folder / "pipe.wav")
    (folder / "link.wav").symlink_to("b.wav")
    (folder / "stale.wav").symlink_to("nowhere.wav")
    found = find_recordings(folder)
    assert found == ["b.wav", "link.wav", "stale.wav", "sub/a.MP3", "sub/deep/c.flac"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("missing", "no such folder"), ("b.wav", "is no folder"), ("empty", "holds no recording")],
)
def test_no_recordings_is_an_error(folder: Path, name: str, said: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(AfnextError, match=f"{name}: {said}"):
        find_recordings(folder / name)


def test_each_is_answered_once(folder: Path) -> None:
    out = folder / "out.jsonl"
    told: list[str] = []
    done = answer_folder(folder, out, {"q": 1}, lambda: length, report=told.append)
    assert done == Summary(answered=2, skipped=0, failed=1)
    assert told == ["b.wav: is broken"]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["file"] for line in lines] == find_recordings(folder)
    assert lines[0]["error"] == "is broken"
    assert "text" not in lines[0]
    assert lines[1]["text"] == "a.MP3"
    before = out.read_bytes()
    assert answer_folder(folder, out, {"q": 1}, never) == Summary(0, 3, 1, failed_before=1)
    assert out.read_bytes() == before
    (folder / "new.wav").touch()
    assert answer_folder(folder, out, {"q": 1}, lambda: length) == Summary(1, 3, 1, failed_before=1)
    again = answer_folder(folder, out, {"q": 1}, lambda: lambda *_: {}, retry_failed=True)
    assert again == Summary(1, 3, 0)
    with pytest.raises(AfnextError, match="another question"):
        answer_folder(folder, out, {"q": 2}, never)


def test_a_model_that_cannot_be_loaded_fails_no_recording(folder: Path) -> None:
    def prepare() -> Answer:
        raise AfnextError("no such model")

    with pytest.raises(AfnextError, match="no such model"):
        answer_folder(folder, folder / "out.jsonl", {}, prepare)
    assert (folder / "out.jsonl").read_text() == ""


def test_many_at_once_are_really_at_once(folder: Path) -> None:
    together = threading.Barrier(3, timeout=10)

    def meet(path: Path, stop: Event) -> dict:
        together.wait()
        return {"text": path.name}

    out = folder / "out.jsonl"
    assert answer_folder(folder, out, {}, lambda: meet, concurrency=3) == Summary(3, 0, 0)
    files = {json.loads(line)["file"] for line in out.read_text().splitlines()}
    assert files == set(find_recordings(folder))
    with pytest.raises(ValueError, match="concurrency"):
        answer_folder(folder, out, {}, never, concurrency=0)


def test_an_interrupt_leaves_whole_lines(folder: Path) -> None:
    def report(line: str) -> None:
        raise KeyboardInterrupt

    out = folder / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_folder(folder, out, {}, lambda: length, report=report)
    assert answer_folder(folder, out, {}, lambda: length) == Summary(2, 0, 1)
