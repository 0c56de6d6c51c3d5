"""A folder answered by two workers of a local Ray: each once, by both, gone on with without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from afnext.bulk import Summary, answer_folder
from afnext.bulk.cluster import on_ray
from afnext.bulk.folder import Answer, explain
from afnext.errors import AfnextError


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in range(20):
        (tmp_path / f"{n:02}.wav").touch()
    return tmp_path


@pytest.mark.slow
def test_two_workers_answer_each_once(cluster: None, folder: Path) -> None:
    def prepare() -> Answer:
        import time

        def answer(path: Path, stop: Event) -> dict:
            time.sleep(0.05)
            if path.name == "07.wav":
                raise ValueError(f"{path}: is broken")
            return {"text": path.name, "process": os.getpid()}

        return answer

    def never() -> Answer:
        raise AssertionError("there is nothing to prepare for")

    out, told = folder / "out.jsonl", []
    out.touch()
    done = answer_folder(folder, out, {}, prepare, ray_workers=2, report=told.append)
    assert done == Summary(answered=19, skipped=0, failed=1)
    assert told == ["07.wav: is broken"]
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(line["file"] for line in lines) == [f"{n:02}.wav" for n in range(20)]
    assert {line["file"] for line in lines if "error" in line} == {"07.wav"}
    processes = {line["process"] for line in lines if "error" not in line}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert answer_folder(folder, out, {}, never, ray_workers=2) == Summary(
        0, 20, 1, failed_before=1
    )
    assert answer_folder(folder, out, {}, never) == Summary(0, 20, 1, failed_before=1)


@pytest.mark.slow
def test_a_model_that_no_worker_can_load_is_one_error(cluster: None, folder: Path) -> None:
    def prepare() -> Answer:
        raise ValueError("no such model")

    out = folder / "out.jsonl"
    with pytest.raises(AfnextError, match=r"Ray: .*no such model"):
        answer_folder(folder, out, {}, prepare, ray_workers=2)
    assert out.read_text() == ""


CHATTY = """
import sys
from pathlib import Path
from afnext.bulk.cluster import on_ray

def prepare():
    print("a worker loads")
    def answer(path, stop):
        print("a worker answers", file=sys.stderr)
        return {"text": path.name}
    return answer

names = ["00.wav", "01.wav"]
found = list(on_ray(prepare, str, Path("."), names, 1))
print(sorted(answer["text"] for _, answer in found))
"""


@pytest.mark.slow
def test_what_workers_print_is_not_among_the_progress(folder: Path) -> None:
    """Of a Ray that is started for the answers."""
    pytest.importorskip("ray.data")
    run = subprocess.run(
        [sys.executable, "-c", CHATTY], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert run.stdout == "['00.wav', '01.wav']\n", run.stderr
    assert "a worker" not in run.stderr


def test_without_ray_the_error_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AfnextError, match=r"afnext\[ray\]"):
        next(on_ray(lambda: lambda path, stop: {}, explain, folder, ["00.wav"], 2))
