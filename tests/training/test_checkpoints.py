"""Checkpoints are whole or not there, hold what was saved when it was saved, and run nothing when read."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch import nn

from afnext.convert import convert
from afnext.errors import AfnextError, CheckpointError
from afnext.training import loop
from afnext.training.config import TrainConfig
from afnext.training.distributed.world import World
from afnext.training.run.checkpoints import Checkpoints, newest, read
from afnext.training.run.signals import termination
from afnext.training.run.state import BROKEN, Cursors, Progress


def network(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))


def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    """AdamW after a step: with moments."""
    made = torch.optim.AdamW(net.parameters(), 1e-2)
    net(torch.ones(1, 3)).sum().backward()
    made.step()
    return made


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", World("cpu"))


def test_what_was_saved_comes_back(checkpoints: Checkpoints) -> None:
    """As it was when ``save`` was called, though it changes while it is written."""
    net = network()
    adam = optimizer(net)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    moments = [{k: v.clone() for k, v in adam.state[p].items()} for p in net.parameters()]
    cursors = Cursors({"a": 12, "b": 3}, {"a": 9, "b": 40}, (("b", 1), ("a", 11)))
    progress = Progress(1, 20, 3.5, 2, 0.7, cursors)
    checkpoints.save(net, [adam], progress)
    expected, torch_random = dataclasses.replace(progress), torch.get_rng_state()
    optimizer(net)
    progress.step = 21
    checkpoints.finish()

    other = network()
    assert checkpoints.restore(other) == expected
    assert torch.equal(torch.get_rng_state(), torch_random)
    assert all(torch.equal(value, weights[name]) for name, value in other.state_dict().items())
    empty = torch.optim.AdamW(other.parameters(), 1e-2)
    checkpoints.restore_optimizers(other, [empty])
    for parameter, before in zip(other.parameters(), moments, strict=True):
        assert empty.state[parameter].keys() == before.keys()
        assert all(torch.equal(empty.state[parameter][key], before[key]) for key in before)


def test_the_newest_stay(checkpoints: Checkpoints) -> None:
    net = network()
    for stage, step in ((0, 5), (0, 10), (1, 0), (1, 5)):
        checkpoints.save(net, [], Progress(stage, step))
    checkpoints.finish()
    names = sorted(path.name for path in checkpoints.folder.iterdir())
    assert names == ["01-0000000", "01-0000005"]
    assert checkpoints.newest == checkpoints.folder / "01-0000005"


def test_none(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest is None
    assert checkpoints.restore(network()) is None


def test_another_network_is_named(checkpoints: Checkpoints) -> None:
    checkpoints.save(network(), [], Progress())
    checkpoints.finish()
    with pytest.raises(
        CheckpointError, match=r"another network \(weights/0.weight is \[4, 3\] there"
    ):
        checkpoints.restore(network(5))
    with pytest.raises(CheckpointError, match=r"another network \(weights/2.bias\)"):
        checkpoints.restore(nn.Sequential(*network(), nn.Linear(1, 1)))


def test_damage_is_refused(checkpoints: Checkpoints) -> None:
    net = network()
    checkpoints.save(net, [], Progress())
    checkpoints.finish()
    last = checkpoints.newest
    assert last is not None
    for name in [path.name for path in last.iterdir()]:
        content = (last / name).read_bytes()
        for broken in (b"", content[: len(content) // 2], b"not a checkpoint"):
            (last / name).write_bytes(broken)
            with pytest.raises(CheckpointError, match="cannot resume from"):
                checkpoints.restore(net)
        (last / name).unlink()
        with pytest.raises(CheckpointError, match="cannot resume from"):
            checkpoints.restore(net)
        (last / name).write_bytes(content)
    assert checkpoints.restore(net) == Progress()


def test_one_of_an_earlier_form_is_named(checkpoints: Checkpoints) -> None:
    """Which drew with replacement: where its walk would stand nobody knows."""
    checkpoints.save(network(), [], Progress(0, 3))
    checkpoints.finish()
    assert checkpoints.newest is not None
    progress = checkpoints.newest / "progress.json"
    values = json.loads(progress.read_text())
    del values["format"], values["cursors"]
    progress.write_text(json.dumps(values))
    with pytest.raises(
        CheckpointError, match=r"progress.json: it is of format 1, .* reads format 2"
    ):
        checkpoints.restore(network())


class Evil:
    """What runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def test_nothing_in_it_is_run(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.save(network(), [], Progress())
    checkpoints.finish()
    last, marker = checkpoints.newest, tmp_path / "ran"
    assert last is not None
    listed = (last / ".metadata").read_bytes()
    (last / ".metadata").write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(CheckpointError, match="does not belong"):
        checkpoints.restore(network())
    names = b"cbuiltins\ngetattr\n(ctorch\nSize\nV__init_subclass__\ntR."
    (last / ".metadata").write_bytes(names)
    with pytest.raises(CheckpointError, match="does not belong"):
        checkpoints.restore(network())
    # Nor what stands in the place of a tensor.
    (last / ".metadata").write_bytes(listed)
    data = next(last.glob("*.distcp"))
    torch.save(Evil(marker), data)
    with pytest.raises(CheckpointError):
        checkpoints.restore(network())
    assert not marker.exists()


def test_a_full_disk_leaves_the_one_before(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()
    checkpoints.save(net, [], Progress(0, 1))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    checkpoints.finish()
    with monkeypatch.context() as patch:
        patch.setattr(dcp.FileSystemWriter, "write_data", full)
        checkpoints.save(net, [], Progress(0, 2))
        with pytest.raises(AfnextError, match=r"cannot write .*0000002.*No space left"):
            checkpoints.finish()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["00-0000001"]
    checkpoints.save(net, [], Progress(0, 3))  # where there is room again
    checkpoints.finish()
    assert checkpoints.restore(net) == Progress(0, 3)


KILLED = """
import sys
from pathlib import Path
import torch
from torch import nn
from afnext.training.run.checkpoints import Checkpoints
from afnext.training.run.state import Progress
from afnext.training.distributed.world import World
net = nn.Linear(1000, 300)
checkpoints = Checkpoints(Path(sys.argv[1]), World("cpu"))
for step in range(1, 1000):
    nn.init.constant_(net.weight, step), nn.init.constant_(net.bias, step)
    checkpoints.save(net, [], Progress(0, step))
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_one_is_whole(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while int(process.stdout.readline()) < 10:
        pass
    time.sleep(0.013)
    process.kill()
    process.wait()
    net = nn.Linear(1000, 300)
    progress = Checkpoints(tmp_path, World("cpu")).restore(net)
    assert progress is not None
    assert progress.step >= 9
    assert net.weight.unique().tolist() == net.bias.unique().tolist() == [progress.step]


def test_spikes() -> None:
    progress = Progress()
    assert all(progress.usable(1.0, True, 3.0, "x") for _ in range(5))
    assert progress.usable(2.9, True, 3.0, "x")
    assert not progress.usable(3.5, True, 3.0, "x")
    assert progress.usable(1e9, True, 0.0, "x"), "no guard was asked for"
    progress = Progress(norm=1.0)
    for _ in range(BROKEN - 1):
        assert not progress.usable(5.0, True, 3.0, "x")
    with pytest.raises(AfnextError, match=f"{BROKEN} steps in a row were far longer"):
        progress.usable(5.0, True, 3.0, "x")


def test_a_second_interrupt_interrupts() -> None:
    with termination() as told:
        signal.raise_signal(signal.SIGINT)
        assert told.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_after_its_step(
    recipe: TrainConfig,
    tmp_path: Path,
    shared_data: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    """Nothing is saved but for the signal, and what goes on from there ends as if there had been none (and as
    if it had been saved and evaluated).
    """
    recipe = dataclasses.replace(recipe, save_every=0, evaluate_every=0)
    losses, steps = loop.Run.losses, []

    def signalled(self, batch, stage):
        steps.append(stage.name)
        if steps.count("letters") == 2:
            os.kill(os.getpid(), number)
        return losses(self, batch, stage)

    out, before = tmp_path / "signalled", signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "losses", signalled)
        with pytest.raises(AfnextError, match="stopped by a signal after step 2 of letters"):
            loop.train(recipe, out, data=shared_data)
    assert signal.getsignal(number) is before
    last = newest(out / "checkpoints")
    assert last is not None
    assert json.loads((last / "progress.json").read_text())["step"] == 2
    assert any(name.startswith("optimizer/") for name in read(last))
    # What there is of it is a model, by its own recipe and tokenizer.
    model = convert(out, tmp_path / "model")
    assert {path.name for path in model.iterdir()} == {
        path.name for path in (trained / "model").iterdir()
    }
    exported, kept = load_file(model / "model.safetensors"), read(last)
    assert exported.keys() == load_file(trained / "model" / "model.safetensors").keys()
    assert all(torch.equal(w, kept[f"weights/net.{name}"]) for name, w in exported.items())
    config = json.loads((model / "config.json").read_text())
    assert config == json.loads((trained / "model" / "config.json").read_text())
    half = load_file(convert(last, tmp_path / "half", dtype="bfloat16") / "model.safetensors")
    assert {w.dtype for w in half.values()} == {torch.bfloat16}
    resumed = loop.train(recipe, out, data=shared_data, resume=True)
    a, b = (load_file(f / "model.safetensors") for f in (trained / "model", resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_run_that_begins_anew_has_its_own_tokenizer(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path
) -> None:
    """What is left of one that kept nothing is no part of it."""
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("of another")
    made = loop.train(recipe, tmp_path, data=shared_data)
    texts = [(f / "tokenizer.json").read_text() for f in (made, tmp_path / "tokenizer")]
    assert texts[0] == texts[1]


def test_what_is_no_checkpoint_of_a_run_is_not_exported(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="kept no checkpoint yet"):
        convert(tmp_path / "empty", tmp_path / "out")
    checkpoints.save(network(), [], Progress())
    checkpoints.finish()
    with pytest.raises(CheckpointError, match=r"recipe.json is not there"):
        convert(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
