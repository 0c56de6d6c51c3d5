"""What is frozen costs no gradient, no message, no state; a batch that teaches nothing stops nobody."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from safetensors.torch import load_file

from afnext.errors import AfnextError
from afnext.hub import EMBEDDED
from afnext.training import loop
from afnext.training.config import TrainConfig
from afnext.training.run.checkpoints import newest, read
from tests.parallel.processes import spawn
from tests.training.mesh_runs import all_recorded, recorded, scattered, write_sources
from tests.training.mesh_runs import recipe as mesh_recipe

ADAPTOR = {"train": {"multi_modal_projector": 1e-3}, "freeze": ["audio_tower", "language_model"]}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frozen") / "sources"
    write_sources(folder)
    return folder


def adaptor_alone(sources: Path, read: float, steps: int = 2) -> TrainConfig:
    """Some batches have no audio where ``read`` is above 0, all where it is 1."""
    made = mesh_recipe(sources, steps=steps, seconds=10.0, read=read, tokens=120)
    return dataclasses.replace(made, stages=[dataclasses.replace(made.stages[0], **ADAPTOR)])


def test_texts_alone_teach_an_adaptor_nothing(sources: Path, tmp_path: Path) -> None:
    """A step without any gradient is a step all the same, and changes nothing."""
    config = adaptor_alone(sources, read=0.999, steps=1)
    folder = loop.train(config, tmp_path)
    made = load_file(folder / "model.safetensors")
    before = load_file(EMBEDDED["nano"] / "model.safetensors")
    assert all((made[name] == value.float()).all() for name, value in before.items())


@pytest.mark.sweep
def test_processes_do_not_wait_for_one_that_has_texts_alone(sources: Path, tmp_path: Path) -> None:
    """With a decoder that is frozen its layers are in nobody's backward but of those who hear: all take part,
    and gradients are those of one process.
    """
    config = adaptor_alone(sources, read=0.6)
    alone = recorded(config, tmp_path / "alone")
    for answers in spawn(2, all_recorded, [config], tmp_path / "spread", tmp_path / "alone"):
        for found, wanted in zip(answers[0], alone, strict=True):
            assert found["error"] < 5e-6
            assert found["losses"] == pytest.approx(wanted["losses"], rel=2e-6)


@pytest.mark.sweep
def test_what_is_frozen_is_neither_sent_nor_kept(sources: Path, tmp_path: Path) -> None:
    """Of four batches two processes add up two each: the adaptor's gradients, then those of everything in the
    next stage. A checkpoint has the optimizer's state of what is trained alone.
    """
    first = adaptor_alone(sources, read=0.0, steps=1)
    everything = mesh_recipe(sources, steps=1, seconds=10.0, read=0.0, tokens=120).stages[0]
    everything = dataclasses.replace(everything, name="everything")
    config = dataclasses.replace(first, save_every=1, stages=[*first.stages, everything])
    first = dataclasses.replace(first, save_every=1, stages=[
        dataclasses.replace(first.stages[0], steps=2)])  # fmt: skip
    weights = load_file(EMBEDDED["nano"] / "model.safetensors")
    tied = "language_model.lm_head.weight"
    sizes = {n: w.numel() for n, w in weights.items() if n != tied and "embed_positions" not in n}
    adaptor = sum(size for name, size in sizes.items() if "projector" in name)
    for sent, later in zip(
        spawn(2, scattered, first, tmp_path / "first"),
        spawn(2, scattered, config, tmp_path / "both"),
        strict=True,
    ):
        assert sent == pytest.approx(2 * 2 * adaptor, rel=0.01)  # two steps; padded to whole rows
        assert later == pytest.approx(2 * (adaptor + sum(sizes.values())), rel=0.01)
    saved = read(tmp_path / "first" / "checkpoints" / "00-0000002")
    state = {n.split("/")[1] for n in saved if n.startswith("optimizer/")}
    assert state == {f"net.{name}" for name in sizes if "projector" in name}


def test_offload_is_for_several_gpus(sources: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(adaptor_alone(sources, read=0.0), offload=True)
    with pytest.raises(AfnextError, match="offload: with device cpu everything is on the host"):
        loop.train(config, tmp_path)
    world = loop.World("cpu")
    world.kind = "cuda"
    with pytest.raises(AfnextError, match="offload: takes several processes"):
        loop.check_offload(config, world)
    world.size = 2
    loop.check_offload(config, world)
    muon = dataclasses.replace(config.stages[0], optimizer="muon")
    with pytest.raises(AfnextError, match="offload: all has muon, which works on whole matrices"):
        loop.check_offload(dataclasses.replace(config, stages=[muon]), world)
    assert newest(tmp_path / "checkpoints") is None
