"""A process that dies, ends, stands still or is late ends a run with its rank and the reason; ``torchrun``
starts it again, and it goes on."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from afnext.errors import AfnextError
from afnext.ops import runtime
from afnext.parallel import GroupLink
from afnext.parallel.link import Work
from afnext.training.distributed import agreement, watch
from afnext.training.distributed.agreement import agree
from afnext.training.distributed.watch import Watch
from afnext.training.loop import refusal
from tests.parallel.cases import Case, of_rank
from tests.parallel.processes import spawn
from tests.training.mesh_runs import write_sources

pytestmark = pytest.mark.slow

ALIKE = ("recipe", "device", "choice of stages", "compiled module")
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failures") / "sources"
    write_sources(folder)
    return folder


def torchrun(
    sources: Path, folder: Path, how: str, restarts: int = 0, step: int = 3
) -> tuple[int, str]:
    """The exit status of a run of two processes, and what they said."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               f"--max-restarts={restarts}", "-m", "tests.training.failing_run",
               str(sources), str(folder), how, str(step)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    return done.returncode, done.stderr


def losses(folder: Path) -> list[list[float]]:
    return [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing befell."""
    folder = tmp_path_factory.mktemp("whole")
    status, said = torchrun(sources, folder, "whole")
    assert status == 0, said
    return folder


def same_weights(*folders: Path) -> bool:
    a, b = (load_file(f / "run" / "model" / "model.safetensors") for f in folders)
    return all((a[name] == b[name]).all() for name in a)


@pytest.mark.sweep
def test_torchrun_starts_a_run_again_that_was_killed(
    sources: Path, whole: Path, tmp_path: Path
) -> None:
    """From its newest checkpoint, to the losses and weights of one that was not; who lives names the dead."""
    killed = tmp_path / "killed"
    status, said = torchrun(sources, killed, "killed", restarts=1)
    assert status == 0, said
    assert "error: rank 0 ends: rank 1 died (its last sign: " in said
    assert losses(killed) == losses(whole)[:3] + losses(whole)[2:]  # saved before steps 2 and 4
    assert same_weights(whole, killed)
    # Of another torchrun a run is not taken over, also not where it starts again.
    status, said = torchrun(sources, killed, "whole", restarts=1)
    assert status != 0
    assert said.count("holds a run already") >= 2


@pytest.mark.sweep
def test_a_signal_to_one_process_ends_all_with_a_checkpoint(
    sources: Path, whole: Path, tmp_path: Path
) -> None:
    """Of the step under way, which is kept for that alone; what goes on from there repeats nothing."""
    status, said = torchrun(sources, tmp_path, "terminated", restarts=1, step=2)
    assert status == 0, said
    assert "error: stopped by a signal after step 3 of all, which is kept" in said
    assert losses(tmp_path) == losses(whole)
    assert same_weights(whole, tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("raises", "rank 0 ends: rank 1 ended: the moon is full"),
        ("stopped", "rank 0 ends: rank 1 gives no sign of life for"),
        ("late", "rank 1 is waiting for the data of step 3 of all for"),
        ("saving", "rank 1 is between steps 3 and 4 of all for"),
        ("exporting", "rank 0 is at the end of all for"),
        *((f"another {what}", f"rank 1 has another {what} than rank 0") for what in ALIKE),
    ],
)
def test_the_rank_and_the_reason_are_named(
    sources: Path, tmp_path: Path, how: str, wanted: str
) -> None:
    began = time.monotonic()
    status, said = torchrun(sources, tmp_path / "run", how)
    assert status != 0
    assert wanted in said
    assert time.monotonic() - began < 120


def test_a_run_is_taken_over_by_the_torchrun_that_began_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(run: str, restarts: str) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", run)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)

    out = tmp_path / "run"
    started("one", "0")
    assert refusal(out, False) == ""
    (out / "checkpoints" / "00-0000002").mkdir(parents=True)
    assert "holds a run already" in refusal(out, False)
    for run, taken in (("one", True), ("other", False), ("none", False)):
        started(run, "2")
        assert (refusal(out, False) == "") == taken
    assert refusal(out, True) == ""


def test_who_is_otherwise_or_absent_is_named(tmp_path: Path) -> None:
    """By all, before anything is joined."""

    def of_three(values: list[str], folder: Path, patience: float = 60.0) -> list[str]:
        folder.mkdir()

        def of_rank(rank: int) -> str:
            store = dist.FileStore(str(folder / "store"), 3)
            alike = {"recipe": values[rank], "code": "same"}
            try:
                agree(store, rank, 3, alike, timedelta(seconds=patience))
            except AfnextError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor() as pool:
            return list(pool.map(of_rank, range(len(values))))

    assert of_three(["a", "a", "a"], tmp_path / "alike") == ["", "", ""]
    other = of_three(["a", "a", "b"], tmp_path / "other")
    assert other == ["rank 2 has another recipe than rank 0"] * 3
    absent = of_three(["a", "a"], tmp_path / "absent", 1.0)
    assert absent == ["rank 2 did not come in 1 s"] * 2


def test_what_is_compiled_is_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = agreement.code()
    other = tmp_path / "_C.so"
    other.write_bytes(b"")
    monkeypatch.setattr(runtime, "module_path", lambda: other)
    monkeypatch.setattr(torch, "__version__", "1.0")
    now = agreement.code()
    assert {what for what in now if now[what] != before[what]} == {
        "compiled module", "version of torch"
    }  # fmt: skip


WATCHING: list[Watch] = []


def watches(folder: Path, count: int, silence: float = 60.0) -> list[Watch]:
    store = dist.FileStore(str(folder / "store"), count)
    made = [Watch(store, rank, count, silence) for rank in range(count)]
    WATCHING.extend(made)
    return made


def until(seconds: float, condition) -> bool:  # type: ignore[no-untyped-def]
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.01)
    return bool(condition())


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, str]]:
    """By rank, why a process would have been ended."""
    found: dict[int, str] = {}

    def noted(rank: int, why: str) -> None:
        found.setdefault(rank, why)

    monkeypatch.setattr(watch, "_end", noted)
    monkeypatch.setattr(watch, "BEAT", 0.05)
    monkeypatch.setattr(watch, "GRACE", 0.1)
    monkeypatch.setattr(watch, "GONE", 3.0)
    yield found
    for each in WATCHING:  # or, where a test fails, one would end all tests
        each._ended.set()
        each._thread.join()
    WATCHING.clear()


def test_whoever_is_silent_is_named_by_all(tmp_path: Path, ends: dict[int, str]) -> None:
    three = watches(tmp_path, 3, silence=3.0)
    three[1].at("at step 7 of all", 100.0)
    assert until(30, lambda: "step 7" in three[0]._signs()[1])
    three[1]._ended.set()  # as a process that was killed: it says no goodbye
    assert until(30, lambda: {0, 2} <= ends.keys())
    assert "rank 1 gives no sign of life" in ends[0]
    assert "(the last: at step 7 of all)" in ends[0]
    assert ends[0] == ends[2]


def test_whoever_is_late_is_named(tmp_path: Path, ends: dict[int, str]) -> None:
    three = watches(tmp_path, 3)
    for step in range(4):
        for each in three:
            each.at(f"waiting for the data of step {step} of all", 2.0)
            if each.rank != 2 or step < 3:
                each.at(f"at step {step} of all", 2.0)
    assert until(30, lambda: len(ends) == 3)
    assert len(set(ends.values())) == 1
    assert "rank 2 is waiting for the data of step 3 of all for" in ends[0]


def test_of_those_who_are_as_far_who_does_not_wait_is_named(
    tmp_path: Path, ends: dict[int, str]
) -> None:
    for each in watches(tmp_path, 3):
        each.at("between steps 3 and 4 of all", 2.0)
        each.awaits(0, "" if each.rank == 1 else watch.OTHERS)
    assert until(30, lambda: len(ends) == 3)
    assert "rank 1 is between steps 3 and 4 of all for" in ends[0]
    assert len(set(ends.values())) == 1


def test_a_message_that_does_not_arrive_is_named(tmp_path: Path, ends: dict[int, str]) -> None:
    for each in watches(tmp_path, 2):
        each.at("at step 3 of all", 2.0)
    assert until(30, lambda: len(ends) == 2)
    assert "a message between them does not arrive" in ends[0]


def loses_a_message(store: str) -> str:
    """What the watch of one of three living processes in a ring says, where what the first sends gets lost,
    but for its first message.
    """
    reasons: list[str] = []
    watch._end = lambda rank, why: reasons.append(why)  # type: ignore[assignment]
    watch.BEAT, watch.GRACE = 0.1, 0.1
    mesh = init_device_mesh("cpu", (3, 1), mesh_dim_names=("ring", "ulysses"))
    watching = Watch(dist.FileStore(store, 3), dist.get_rank(), 3)
    link = GroupLink(mesh, 12.0, watching.awaits)
    shift, count = link.shift, itertools.count()

    def losing(received: Sequence[Tensor], sent: Sequence[Tensor]) -> Work:
        lost = dist.get_rank() == 0 and next(count) > 0
        return shift(received, [] if lost else sent)

    link.shift = losing  # type: ignore[method-assign]
    dist.barrier()
    watching.at("at step 3 of all", 4.0)
    with pytest.raises(AfnextError, match="did not come to an end"):
        of_rank(Case(1, 3), link, dist.get_rank())
    until(30, lambda: reasons)
    return reasons[0]


def test_the_ranks_of_a_message_that_is_lost_are_named(tmp_path: Path) -> None:
    """Not those who then wait for what these do not send."""
    said = spawn(3, loses_a_message, str(tmp_path / "store"))
    assert len(set(said)) == 1
    assert "rank 1 waits for the ring's message from rank 0, which does not arrive" in said[0]
    assert "rank 2 waits" not in said[0]


def test_what_a_process_ended_with_is_told_to_the_others(
    tmp_path: Path, ends: dict[int, str]
) -> None:
    one, other = watches(tmp_path, 2)
    assert one.explain() == ""
    other.failed("the disk is full")
    assert one.explain() == "rank 1 ended: the disk is full"
    assert until(30, lambda: len(ends) == 2)


def test_a_run_that_comes_to_its_end_ends_nobody(tmp_path: Path, ends: dict[int, str]) -> None:
    """Though some are there for longer than others."""
    one, other = watches(tmp_path, 2, silence=1.0)
    one.close()
    time.sleep(2.5)
    other.close()
    assert ends == {}
