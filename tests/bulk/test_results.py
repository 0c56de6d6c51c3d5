"""The file of answers: whole after a cut at any byte, one writer, other settings and files refused."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from afnext.bulk import Results, fingerprint
from afnext.errors import AfnextError

SETTINGS = fingerprint({"question": "What?"})


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def fill(path: Path, *files: str) -> None:
    with Results(path, SETTINGS) as results:
        for file in files:
            results.add(file, {"text": f"Ünïcode\u2028 of {file}"})


def test_what_was_added_is_done_when_opened_again(path: Path) -> None:
    fill(path, "a.wav", "b/c.wav")
    with Results(path, SETTINGS) as results:
        results.add("d.wav", {"error": "broken"})
        assert results.done == {"a.wav", "b/c.wav", "d.wav"}
        assert results.failed == {"d.wav"}
    assert [line["file"] for line in lines(path)] == ["a.wav", "b/c.wav", "d.wav"]
    assert lines(path)[0]["text"] == "Ünïcode\u2028 of a.wav"
    assert list(lines(path)[0]) == ["file", "text", "settings"]


def test_a_cut_at_any_byte_loses_the_last_line_alone(path: Path) -> None:
    fill(path, "a.wav")
    first = path.stat().st_size
    fill(path, "b.wav")
    whole = path.read_bytes()
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        with Results(path, SETTINGS) as results:
            assert results.done == {"a.wav"}
            results.add("b.wav", {"text": "Ünïcode\u2028 of b.wav"})
        assert path.read_bytes() == whole


def test_a_name_that_is_no_text_comes_back(path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    fill(path, name)
    path.read_bytes().decode()  # the file itself is UTF-8
    with Results(path, SETTINGS) as results:
        assert results.done == {name}


def test_other_settings_are_refused_and_the_file_is_left(path: Path) -> None:
    fill(path, "a.wav")
    before = path.read_bytes()
    with pytest.raises(AfnextError, match=r"out\.jsonl.*another question"):
        Results(path, fingerprint({"question": "Who?"}))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    ["my notes", "my notes\n", '{"file": 3, "settings": ""}\n', '{"a": 1}\n', "[]\n", "\n"],
)
def test_a_file_of_somebody_else_is_refused_and_left(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(AfnextError, match="line 1 is not an answer"):
        Results(path, SETTINGS)
    assert path.read_text() == content


def test_one_writer_at_a_time(path: Path) -> None:
    with Results(path, SETTINGS), pytest.raises(AfnextError, match="another process"):
        Results(path, SETTINGS)
    Results(path, SETTINGS).close()


def test_failed_ones_are_dropped_to_be_tried_again(path: Path) -> None:
    fill(path, "a.wav")
    with Results(path, SETTINGS) as results:
        results.add("b.wav", {"error": "broken"})
    fill(path, "c.wav")
    with Results(path, SETTINGS, retry_failed=True) as results:
        assert (results.done, results.failed) == ({"a.wav", "c.wav"}, set())
        with pytest.raises(AfnextError, match="another process"):  # the lock went with the file
            Results(path, SETTINGS)
        results.add("b.wav", {"text": "well"})
    assert [line["file"] for line in lines(path)] == ["a.wav", "c.wav", "b.wav"]
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("where", ["missing/out.jsonl", "", "/proc/out.jsonl"])
def test_a_place_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    with pytest.raises(AfnextError, match="cannot be written"):
        Results(tmp_path / where, SETTINGS)


def test_a_full_disk_leaves_whole_lines(path: Path) -> None:
    code = f"""if True:
        import resource
        from afnext.bulk import Results
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with Results({str(path)!r}, {SETTINGS!r}) as results:
            for number in range(100):
                results.add(f"{{number}}.wav", {{"text": "word " * 20}})"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert "cannot be written (File too large); the 6 answers in it are whole" in run.stderr
    assert [line["file"] for line in lines(path)] == [f"{n}.wav" for n in range(6)]
    fill(path, "6.wav")  # where there is room again
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("written", [0, 10, None])
def test_an_interrupt_within_a_write_leaves_whole_lines(
    path: Path, written: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that came to the disk whole stays, although ``add`` did not return."""
    fill(path, "a.wav")
    write = os.write

    def interrupted(file: int, data: bytes) -> int:
        write(file, data[:written])
        raise KeyboardInterrupt

    with Results(path, SETTINGS) as results:
        monkeypatch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            results.add("b.wav", {"text": "words"})
        monkeypatch.undo()
    assert [line["file"] for line in lines(path)] == ["a.wav", "b.wav"][: 1 + (written is None)]


def test_killed_at_random_moments_nothing_is_lost_or_done_twice(path: Path) -> None:
    """What was said to be added before the kill is there after it, once; the rest is added later."""
    code = f"""if True:
        from afnext.bulk import Results
        with Results({str(path)!r}, {SETTINGS!r}) as results:
            for number in range(3000):
                if str(number) not in results.done:
                    results.add(str(number), {{"text": "word " * (number % 2000)}})
                    print(number, flush=True)"""
    dice, said = random.Random(0), set()
    for _ in range(8):  # on a slow machine the last find nothing left to do
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(dice.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        said |= set((first + process.stdout.read()).split("\n")[:-1])
        process.wait()
        found = [json.loads(line)["file"] for line in path.read_bytes().split(b"\n")[:-1]]
        assert said <= set(found)
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert sorted(int(line["file"]) for line in lines(path)) == list(range(3000))
