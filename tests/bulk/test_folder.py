"""A folder: what counts as a recording, each answered once, failures beside answers, many at once."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path

import pytest

from afnext.bulk import Summary, answer_folder, find_recordings
from afnext.bulk.folder import Answer
from afnext.bulk.pool import Stop
from afnext.errors import AfnextError, AudioError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "recordings"
    for name in ("b.wav", "sub/a.MP3", "sub/deep/c.flac", "notes.txt", ".hidden.wav", ".git/d.wav"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def length(path: Path, stop: Stop) -> dict:
    """An answer without a model."""
    if path.name == "b.wav":
        raise AfnextError(f"{path}: is broken\nin two lines")
    return {"text": path.name, "usage": {"audio_seconds": 1.0}}


def never(device: str | None) -> Answer:
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
    done = answer_folder(folder, out, {"q": 1}, lambda _: length, report=told.append)
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
    assert answer_folder(folder, out, {"q": 1}, lambda _: length) == Summary(
        1, 3, 1, failed_before=1
    )
    again = answer_folder(folder, out, {"q": 1}, lambda _: lambda *_: {}, retry_failed=True)
    assert again == Summary(1, 3, 0)
    with pytest.raises(AfnextError, match="another question"):
        answer_folder(folder, out, {"q": 2}, never)


def test_a_model_that_cannot_be_loaded_fails_no_recording(folder: Path) -> None:
    def prepare(device: str | None) -> Answer:
        raise AfnextError("no such model")

    with pytest.raises(AfnextError, match="no such model"):
        answer_folder(folder, folder / "out.jsonl", {}, prepare)
    assert (folder / "out.jsonl").read_text() == ""


def test_many_at_once_are_really_at_once(folder: Path) -> None:
    together = threading.Barrier(3, timeout=60)

    def meet(path: Path, stop: Stop) -> dict:
        together.wait()
        return {"text": path.name}

    out = folder / "out.jsonl"
    assert answer_folder(folder, out, {}, lambda _: meet, concurrency=3) == Summary(3, 0, 0)
    files = {json.loads(line)["file"] for line in out.read_text().splitlines()}
    assert files == set(find_recordings(folder))
    with pytest.raises(ValueError, match="concurrency"):
        answer_folder(folder, out, {}, never, concurrency=0)


def of_reading(error: OSError) -> AudioError:
    """As audio's own code raises it."""
    told = AudioError("cannot be read")
    told.__cause__ = error
    return told


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device lost"),
        MemoryError(),
        OSError(errno.EMFILE, "Too many open files"),
        of_reading(OSError(errno.ESTALE, "Stale file handle")),
    ],
)
def test_a_broken_machine_marks_nothing(folder: Path, error: Exception) -> None:
    def broken(path: Path, stop: Stop) -> dict:
        raise error

    out = folder / "out.jsonl"
    with pytest.raises(
        AfnextError, match=r"sub/deep/c\.flac: .* nor of the 2 before it.* tries them again"
    ):
        answer_folder(folder, out, {}, lambda _: broken)
    assert out.read_bytes() == b""
    assert answer_folder(folder, out, {}, lambda _: length) == Summary(2, 0, 1)


def test_one_that_the_machine_failed_is_left_for_another_run(folder: Path) -> None:
    def odd(path: Path, stop: Stop) -> dict:
        if path.name == "a.MP3":
            raise RuntimeError("out of memory")
        return length(path, stop)

    out, told = folder / "out.jsonl", []
    done = answer_folder(folder, out, {}, lambda _: odd, report=told.append)
    assert done == Summary(1, 0, 1, left=1)
    assert told[1] == "sub/a.MP3: RuntimeError: out of memory (left for another run)"
    assert answer_folder(folder, out, {}, lambda _: length) == Summary(1, 2, 1, failed_before=1)


def test_a_folder_that_goes_away_fails_no_recording(folder: Path, tmp_path: Path) -> None:
    """A disk of the network, say."""

    def gone(path: Path, stop: Stop) -> dict:
        if folder.exists():
            folder.rename(tmp_path / "away")
        raise AudioError(f"{path}: no such file") from FileNotFoundError(errno.ENOENT, "gone")

    out = tmp_path / "out.jsonl"
    with pytest.raises(AfnextError, match="tries them again"):
        answer_folder(folder, out, {}, lambda _: gone)
    assert out.read_bytes() == b""


def test_answers_that_are_cut_off_are_counted(folder: Path) -> None:
    def cut(path: Path, stop: Stop) -> dict:
        return {"text": "", "stopped": "length" if path.name == "b.wav" else "end"}

    assert answer_folder(folder, folder / "out.jsonl", {}, lambda _: cut) == Summary(
        3, 0, 0, cut_off=1
    )


def test_an_interrupt_leaves_whole_lines(folder: Path) -> None:
    def report(line: str) -> None:
        raise KeyboardInterrupt

    out = folder / "out.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer_folder(folder, out, {}, lambda _: length, report=report)
    assert answer_folder(folder, out, {}, lambda _: length) == Summary(2, 0, 1)
