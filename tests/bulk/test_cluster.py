"""A folder answered by two workers of a local Ray: each once, by both, gone on with without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from afnext.bulk import Summary, answer_folder
from afnext.bulk.cluster import on_ray, shared_out
from afnext.bulk.folder import Answer
from afnext.bulk.pool import Stop
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
    def prepare(device: str | None) -> Answer:
        import time

        def answer(path: Path, stop: Stop) -> dict:
            (folder / f"worker-{os.getpid()}").touch()
            until = time.monotonic() + 120  # the other one is still on its way
            while len(list(folder.glob("worker-*"))) < 2 and time.monotonic() < until:
                time.sleep(0.01)
            if path.name == "07.wav":
                raise ValueError(f"{path}: is broken")
            return {"text": path.name, "process": os.getpid()}

        return answer

    def never(device: str | None) -> Answer:
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
    def prepare(device: str | None) -> Answer:
        raise ValueError("no such model")

    out = folder / "out.jsonl"
    with pytest.raises(AfnextError, match=r"Ray: .*no such model"):
        answer_folder(folder, out, {}, prepare, ray_workers=2)
    assert out.read_text() == ""


@pytest.mark.slow
def test_workers_answer_several_at_once_by_their_share_of_the_cores(
    cluster: None, folder: Path
) -> None:
    def prepare(device: str | None) -> Answer:
        import threading

        from afnext.ops import runtime

        together = threading.Barrier(4, timeout=30)

        def answer(path: Path, stop: Stop) -> dict:
            together.wait()
            return {"device": device, "threads": runtime.num_threads()}

        return answer

    out = folder / "out.jsonl"
    done = answer_folder(folder, out, {}, prepare, ray_workers=1, concurrency=4)
    assert done == Summary(20, 0, 0)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert {(line["device"], line["threads"]) for line in lines} == {("cpu", 2)}
    with pytest.raises(AfnextError, match="no machine of the Ray cluster has a GPU"):
        list(on_ray(prepare, folder, ["00.wav"], 1, device="cuda"))


@pytest.mark.slow
def test_a_worker_whose_machine_is_broken_marks_nothing(cluster: None, folder: Path) -> None:
    def prepare(device: str | None) -> Answer:
        def answer(path: Path, stop: Stop) -> dict:
            raise RuntimeError("CUDA error: device lost")

        return answer

    out = folder / "out.jsonl"
    with pytest.raises(AfnextError, match="RuntimeError: CUDA error: device lost: it is no fault"):
        answer_folder(folder, out, {}, prepare, ray_workers=2)
    assert out.read_bytes() == b""


@pytest.mark.parametrize(
    ("cores", "workers", "share"),
    [
        ([2], 2, 1),
        ([2], 1, 2),
        ([8, 8], 2, 8),
        ([8, 8], 3, 4),
        ([4] * 8, 2, 4),
        ([2], 5, 1),
        ([], 1, 1),
    ],
)
def test_cores_are_shared_out(cores: list[int], workers: int, share: int) -> None:
    assert shared_out(cores, workers) == share


CHATTY = """
import sys
from pathlib import Path
from afnext.bulk.cluster import on_ray

def prepare(device):
    print("a worker loads")
    def answer(path, stop):
        print("a worker answers", file=sys.stderr)
        return {"text": path.name}
    return answer

names = ["00.wav", "01.wav"]
found = list(on_ray(prepare, Path("."), names, 1))
print(sorted(answer["text"] for _, answer in found))
"""


@pytest.mark.slow
def test_what_workers_print_is_not_among_the_progress(folder: Path) -> None:
    """Of a Ray that is started for the answers."""
    pytest.importorskip("ray.data")
    run = subprocess.run(
        [sys.executable, "-c", CHATTY], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert run.stdout == "['00.wav', '01.wav']\n", run.stderr
    assert "a worker" not in run.stderr


def test_without_ray_the_error_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AfnextError, match=r"afnext\[ray\]"):
        next(on_ray(lambda device: lambda path, stop: {}, folder, ["00.wav"], 2))
