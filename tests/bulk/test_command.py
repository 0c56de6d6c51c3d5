"""The command over a folder, with nano: killed and gone on with, interrupted, broken files."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
from safetensors.torch import load_file, save_file

from afnext.hub import find_model
from tests.command import afnext as run

pytestmark = pytest.mark.slow  # every test starts processes

COMMAND = str(Path(sys.executable).with_name("afnext"))
COUNT = 60


def files(out: Path) -> list[str]:
    return [json.loads(line)["file"] for line in out.read_bytes().split(b"\n")[:-1]]


@pytest.fixture
def folder(tmp_path: Path, scene_file: Path) -> Path:
    """All different, so that none is answered from a cache before a signal can be sent."""
    folder = tmp_path / "recordings"
    (folder / "sub").mkdir(parents=True)
    samples, rate = soundfile.read(scene_file)
    for n in range(COUNT):
        path = folder / ("sub" if n % 2 else "") / f"{n}.wav"
        soundfile.write(path, samples * (1 - n / (4 * COUNT)), rate)
    return folder


def started(folder: Path, out: Path, least: int, *options: str) -> subprocess.Popen[str]:
    """A run that has written at least so many lines more."""
    least += out.read_bytes().count(b"\n") if out.exists() else 0
    process = subprocess.Popen(
        [COMMAND, "caption", str(folder), "-o", str(out), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell has what it starts in the background ignore interrupts, and that is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not out.exists() or out.read_bytes().count(b"\n") < least:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return process


def test_killed_and_gone_on_with(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    for least in (1, 5):
        process = started(folder, out, least)
        process.send_signal(signal.SIGSTOP)  # it holds the file, and gets no further
        assert "another process" in run("caption", folder, "-o", out).stderr
        process.kill()
        process.wait()
    assert 6 <= len(files(out)) < COUNT, "the kill came too late to show anything"
    before = len(files(out))
    last = run("caption", folder, "-o", out)
    assert (last.returncode, last.stdout) == (0, f"{out}\n")
    done = COUNT - before
    assert re.fullmatch(
        rf"afnext: {done} answered in [0-9:]+, {before} were there before\n", last.stderr
    ), last.stderr
    assert len(files(out)) == COUNT
    assert len(set(files(out))) == COUNT
    texts = {line["file"]: line["text"] for line in map(json.loads, out.read_text().splitlines())}
    for file in ("0.wav", f"sub/{COUNT - 1}.wav"):
        assert texts[file] == run("caption", folder / file).stdout.strip()


def test_killed_on_ray_and_gone_on_with(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    out = tmp_path / "captions.jsonl"
    process = started(folder, out, 3, "--ray-workers", "2", "--concurrency", "2")
    process.kill()
    process.wait()
    before = len(files(out))
    assert 3 <= before < COUNT, "the kill came too late to show anything"
    last = run("caption", folder, "-o", out, "--ray-workers", "2")
    assert last.returncode == 0, last.stderr
    assert f"{COUNT - before} answered" in last.stderr
    assert len(set(files(out))) == len(files(out)) == COUNT
    texts = {line["file"]: line["text"] for line in map(json.loads, out.read_text().splitlines())}
    assert texts["0.wav"] == run("caption", folder / "0.wav").stdout.strip()
    assert (
        "Ray hands out"
        in run("caption", folder, "-o", out, "--ray-workers", "2", "--device", "cuda:1").stderr
    )


def test_a_model_trained_anew_needs_another_file(folder: Path, tmp_path: Path) -> None:
    for extra in folder.rglob("[1-9]*.wav"):
        extra.unlink()
    model = shutil.copytree(find_model("nano"), tmp_path / "model")
    out = tmp_path / "captions.jsonl"
    command = ("caption", folder, "-o", out, "--model", model)
    assert run(*command).returncode == 0
    os.utime(model / "model.safetensors", (0, 0))  # copied
    again = run(*command)
    assert (again.returncode, again.stderr) == (
        0,
        "afnext: 0 answered in 0:00, 1 were there before\n",
    )
    tensors = load_file(model / "model.safetensors")
    save_file(
        {n: t * 1.02 for n, t in tensors.items()}, model / "model.safetensors", {"format": "pt"}
    )
    refused = run(*command)
    assert refused.returncode == 1
    assert "trained otherwise" in refused.stderr


def test_many_at_once_say_what_one_says(folder: Path, tmp_path: Path) -> None:
    """Threads share the engine's steps; every answer is as if it were alone."""
    texts = []
    for concurrency in (1, 6):
        out = tmp_path / f"{concurrency}.jsonl"
        done = run("ask", folder, "What sounds, when?", "-o", out, "--concurrency", concurrency)
        assert done.returncode == 0
        assert re.fullmatch(rf"afnext: {COUNT} answered in [0-9:]+\n", done.stderr), done.stderr
        lines = map(json.loads, out.read_text().splitlines())
        texts.append({line["file"]: line["text"] for line in lines})
    assert texts[0] == texts[1]
    assert len(texts[0]) == COUNT


def test_an_interrupt_leaves_a_whole_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "captions.jsonl"
    process = started(folder, out, 2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert out.read_bytes().endswith(b"\n")
    assert 2 <= len(files(out)) < COUNT


def test_broken_files_are_listed_and_skipped(folder: Path, tmp_path: Path) -> None:
    for extra in folder.rglob("[1-9]*.wav"):
        extra.unlink()
    (folder / "broken.wav").write_bytes(b"RIFF but no sound")
    out = tmp_path / "answers.jsonl"
    question = "What sounds do you hear, and when?"
    first = run("ask", folder, question, "-o", out)
    assert first.returncode == 1
    assert first.stderr.startswith("afnext: broken.wav: ")
    assert re.match("afnext: 1 answered in .*, 1 failed$", first.stderr.splitlines()[1])
    assert first.stderr.count("\n") == 3
    good, bad = sorted(map(json.loads, out.read_text().splitlines()), key=lambda a: "error" in a)
    assert good["file"] == "0.wav"
    assert "<t>" in good["text"]
    assert good["usage"]["audio_seconds"] == 8.0
    assert good["timings"]["total"] > 0
    assert bad["file"] == "broken.wav"
    later = run("ask", folder, question, "-o", out)
    assert later.returncode == 1
    assert "1 failed (1 in an earlier run), 2 were there before\n" in later.stderr
    for words in (["Who speaks?"], [question, "--adapter", tmp_path]):
        other = run("ask", folder, *words, "-o", out)
        assert other.returncode == 1
        assert "another question" in other.stderr
    (folder / "broken.wav").write_bytes((folder / "0.wav").read_bytes())
    again = run("ask", folder, question, "-o", out, "--retry-failed")
    assert again.returncode == 0
    assert "failed" not in again.stderr
    assert len(files(out)) == 2


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["caption", ".", "--max-tokens", "0", "-o", "x.jsonl"], 1, "max_tokens"),
        (["caption", ".", "--concurrency", "0", "-o", "x.jsonl"], 2, "concurrency"),
        (["caption", ".", ".", "-o", "x.jsonl"], 2, "answers one folder"),
        (["caption", ".", "-o", "missing/x.jsonl"], 1, "cannot be written"),
        (["caption", "."], 1, "-o"),
        (["caption", "0.wav", "-o", "x.jsonl"], 1, "is no folder"),
        (["transcribe", ".", "--format", "srt", "-o", "x.jsonl"], 2, "--format"),
        (["transcribe", "0.wav", "--format", "srt", "--json"], 2, "--format"),
        (["caption", ".", "--logprobs", "-1", "-o", "x.jsonl"], 1, "logprobs"),
        (["caption", "0.wav", "-n", "2", "--temperature", "1"], 2, "-n: shows in --json alone"),
        (["caption", "0.wav", "--cache-bytes", "much"], 2, "as 4G"),
        (["caption", "0.wav", "--retry-failed"], 2, "--retry-failed: works on a folder only"),
        (["caption", "0.wav", "--concurrency", "2"], 2, "--concurrency: works on a folder only"),
        (
            ["ask", "0.wav", "What?", "--ray-workers", "2"],
            2,
            "--ray-workers: works on a folder only",
        ),
    ],
)
def test_misuse(
    words: list[str], code: int, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    answer = run(*words)
    assert answer.returncode == code
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr
    assert not Path("x.jsonl").exists()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_a_bar_on_a_terminal(folder: Path, tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [COMMAND, "transcribe", str(folder), "-o", str(tmp_path / "out.jsonl")],
        stderr=theirs, stdout=subprocess.PIPE, env={**os.environ, "COLUMNS": "120", "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # Linux's end of a terminal whose other side is closed
            break
    assert process.wait() == 0
    os.close(ours)
    assert f"of {COUNT} files".encode() in shown
    assert b" left" in shown
