"""Killed at any moment, a run goes on with the samples that it would have had, in their order, on any number
of processes."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from afnext.convert import convert
from afnext.training import loop
from afnext.training.config import ParallelConfig, TrainConfig
from afnext.training.data.batches import Step
from afnext.training.stage import StageRun
from tests.parallel.processes import WAIT, start
from tests.training.mesh_runs import small, write_sources

ROUNDING = 2e-3
"""Of weights after some steps of AdamW, which are as long as the rate (1e-4) in a direction that the order of
sums can turn."""


def watched(config: TrainConfig, out: Path) -> None:
    """Train, or go on; ``seen-RANK.jsonl`` beside the run gains what each step is made of before it is
    trained on."""
    gradients = StageRun._gradients

    def noted(self: StageRun, made: Step) -> dict[str, float]:
        for part, batch in enumerate(made.batches):
            ids = hashlib.sha256(batch.packed.ids.numpy().tobytes()).hexdigest()[:16]
            number = self.team.data_rank + part * self.team.data_size
            line = [self.progress.step, number, ids, *batch.packed.paths]
            with (out.parent / f"seen-{self.run.world.rank}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        return gradients(self, made)

    StageRun._gradients = noted  # type: ignore[method-assign]
    loop.train(config, out, resume=True)


def seen(folder: Path) -> list[list]:
    """Every step's batches in their order; a step that was trained on again counts once."""
    found = {}
    for path in folder.glob("seen-*.jsonl"):
        for line in path.read_text().splitlines():
            step, number, *rest = json.loads(line)
            assert found.setdefault((step, number), rest) == rest, "a step had other samples before"
    return [[*key, *found[key]] for key in sorted(found)]


def run(config: TrainConfig, folder: Path, world: int, kill_after: float | None = None) -> bool:
    """Train with so many processes; from their first step on all are killed after so many seconds. Gives
    whether they came to the end."""
    folder.mkdir(exist_ok=True)
    before = sum(p.stat().st_size for p in folder.glob("seen-*"))
    started = start(world, str(folder / f"store-{time.time_ns()}"), watched, config, folder / "run")
    ends = kill_after is None
    try:
        if kill_after is not None:
            limit = time.monotonic() + WAIT
            while sum(p.stat().st_size for p in folder.glob("seen-*")) == before and not ends:
                assert time.monotonic() < limit
                # The one before may have been killed behind its last step: nothing is left to do.
                ends = not all(process.is_alive() for process, _ in started)
                time.sleep(0.005)
            if not ends:
                time.sleep(kill_after)
                for process, _ in started:
                    process.kill()
        answers = []
        for process, pipe in started:
            try:
                answers.append(pipe.recv() if pipe.poll(WAIT) else (False, "no answer"))
            except EOFError:
                answers.append((False, "killed"))
            process.join(5)
    finally:
        for process, _ in started:
            process.kill()
    if ends:
        assert all(good for good, _ in answers), answers
    return all(good for good, _ in answers)


def check(whole: Path, killed: Path, batches: int, off: float = ROUNDING) -> None:
    """They saw the same ``batches``, and their weights are not more than ``off`` apart."""
    samples = seen(whole)
    assert len(samples) == batches
    assert seen(killed) == samples
    a, b = (load_file(f / "run" / "model" / "model.safetensors") for f in (whole, killed))
    assert all((a[name] - b[name]).abs().max() <= off for name in a)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume") / "sources"
    write_sources(folder)
    return folder


@pytest.mark.slow
def test_killed_and_gone_on_with_two_processes(sources: Path, tmp_path: Path) -> None:
    config = small(sources, 6)
    run(config, tmp_path / "whole", 1)
    assert not run(config, tmp_path / "killed", 1, 0.1)
    run(config, tmp_path / "killed", 2)
    check(tmp_path / "whole", tmp_path / "killed", 4 * 6)
    # Of the parts that two processes have written the same model is made.
    made = load_file(convert(tmp_path / "killed" / "run", tmp_path / "model") / "model.safetensors")
    wanted = load_file(tmp_path / "killed" / "run" / "model" / "model.safetensors")
    assert all(torch.equal(made[name], value) for name, value in wanted.items())


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("world", "ulysses", "ring"), [(2, 1, 1), (2, 2, 1), (2, 1, 2), (3, 1, 1), (4, 2, 1)]
)
def test_killed_on_one_mesh_it_ends_with_the_same_bits(
    sources: Path, tmp_path: Path, world: int, ulysses: int, ring: int
) -> None:
    """Also where processes share sequences."""
    config = small(sources, 6, 6, ParallelConfig(ulysses, ring))
    run(config, tmp_path / "whole", world)
    assert not run(config, tmp_path / "killed", world, 0.3)
    run(config, tmp_path / "killed", world)
    check(tmp_path / "whole", tmp_path / "killed", 6 * 6, 0.0)


@pytest.mark.sweep
def test_killed_at_random_moments_on_one_to_four_processes(sources: Path, tmp_path: Path) -> None:
    """Until it comes to its end; every time with another number of processes."""
    steps, batches = 20, 12  # which any of these can share
    config = small(sources, steps, batches)
    run(config, tmp_path / "whole", 1)
    rng = random.Random(11)
    kills: Counter[int] = Counter()
    for _ in range(30):
        world = rng.choice([1, 2, 3, 4])
        if run(config, tmp_path / "killed", world, rng.uniform(0.0, 2.5)):
            break
        kills[world] += 1
    else:
        run(config, tmp_path / "killed", 2)
    assert len(kills) > 2
    check(tmp_path / "whole", tmp_path / "killed", batches * steps)
    print(f"killed: {dict(kills)}", torch.__version__)
