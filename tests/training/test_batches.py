"""Batches of a stage: what is drawn is what is heard and learnt, whichever source it is from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from afnext.errors import AfnextError, AudioError
from afnext.model import AudioBatch
from afnext.training import loop
from afnext.training.batches import Batches, answer_weights
from afnext.training.config import TrainConfig
from afnext.training.packing import NOT_LEARNT
from afnext.training.sources import Source
from tests.training.conftest import stage


@pytest.fixture
def run(recipe: TrainConfig, shared_data: Path, tmp_path: Path) -> loop.Run:
    journal = loop.Journal(tmp_path / "log.jsonl")
    return loop.Run(recipe, tmp_path, *loop.prepare(recipe, shared_data, journal), journal)


def test_a_batch_is_a_function_of_seed_stage_and_step(run: loop.Run) -> None:
    """Two readers, one of which has drawn other steps before, give the same tensors."""
    last = run.config.stages[2]
    one, other = (run.batches(last, run.sources) for _ in range(2))
    for step in (4, 1):
        one.batch(step)
    for part in (0, 1):
        a, b = one.batch(3, part), other.batch(3, part)
        assert torch.equal(a.packed.ids, b.packed.ids)
        assert torch.equal(a.packed.audio.features, b.packed.audio.features)
        assert torch.equal(a.targets.active, b.targets.active)
    assert not torch.equal(one.batch(3, 0).packed.ids, one.batch(3, 1).packed.ids)


def test_processes_make_the_same_batches_as_a_thread(run: loop.Run) -> None:
    """In order, whichever is ready first, with what each had to leave out."""
    short = dataclasses.replace(run.config.stages[2], steps=6, context_tokens=150)
    here, there = (list(run.batches(short, run.sources).ahead(1, n)) for n in (0, 2))
    assert len(here) == len(there) == 5
    for a, b in zip(here, there, strict=True):
        assert a.left_out == b.left_out
        for one, other in zip(a.batches, b.batches, strict=True):
            assert torch.equal(one.packed.ids, other.packed.ids)
            assert torch.equal(one.packed.audio.features, other.packed.audio.features)
            assert torch.equal(one.weights, other.weights)
            assert one.targets.spelling == other.targets.spelling
    assert any(step.left_out for step in here), "nothing was left out: the test proves less"


def test_recordings_of_one_name_in_two_sources_are_two(run: loop.Run) -> None:
    """The names of synthesised recordings repeat from source to source; lengths and sounds differ."""
    both = stage("both", ["net", "heads"], [], audio_seconds=40.0, batch_tokens=8000,
                 mixture={"short": 1.0, "longer": 1.0})  # fmt: skip
    config = dataclasses.replace(run.config, stages=[both])
    batches = Batches(config, both, run.sources, run.tokenizer, run.template, run.words)
    batch = batches.batch(0)
    names = [sound.partition("|") for sound in batch.packed.paths]
    paths = [path for _, _, path in names]
    assert len(set(paths)) < len(paths), "no name occurs twice: the test proves nothing"
    first = 0
    for (source, _, path), tokens in zip(names, batch.packed.audio.row_tokens, strict=True):
        windows = run.sources[source].windows(path)
        assert tokens == sum(w.num_tokens for w in windows)
        frames = int(batch.packed.audio.cu_frames[first])
        own = batch.packed.audio.features[frames : frames + 100]
        (alone,) = AudioBatch.collate([windows]).features[None, :100]
        torch.testing.assert_close(own, alone)
        first += len(windows)


def test_scripts_stand_where_recordings_would(run: loop.Run) -> None:
    batch = run.batches(run.config.stages[1], run.sources).batch(0)
    assert batch.packed.audio.num_tokens == 0
    assert len(batch.packed.heard) == 0
    text = run.tokenizer.decode(batch.packed.ids.tolist(), skip_special=False)
    assert "<sound>" not in text
    assert "<t>" in text
    assert any(trunk > 5 for trunk in batch.packed.trunks), "scripts are not shared"


def test_conversations_beyond_the_context_are_left_out_and_counted(run: loop.Run) -> None:
    first = dataclasses.replace(run.config.stages[2], context_tokens=120, mixture={"short": 1.0},
                                mixture_of={})  # fmt: skip
    batches = run.batches(first, run.sources)
    for step in range(8):
        packed = batches.batch(step).packed
        for group, trunk in zip(packed.branches, packed.trunks, strict=True):
            assert max(group) + trunk <= 120
    assert batches.left_out()["longer than the context"] > 0
    nothing = run.batches(dataclasses.replace(first, context_tokens=5), run.sources)
    with pytest.raises(AfnextError, match="all: nothing that is drawn can be used"):
        nothing.batch(0)


def test_a_missing_recording_ends_the_run_or_is_left_out_and_counted(
    run: loop.Run, tmp_path: Path
) -> None:
    records = tmp_path / "x.jsonl"
    records.write_text(
        '{"sound": "gone.wav", "duration": 1.0, "conversations": '
        '[{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]}\n'
    )
    only = stage("only", ["net", "heads"], [], mixture={"mine": 1.0, "short": 1.0})
    config = dataclasses.replace(run.config, stages=[only])

    def batches(skip: bool) -> Batches:
        sources = {**run.sources, "mine": Source(records, skip_broken=skip)}
        return Batches(config, only, sources, run.tokenizer, run.template, run.words)

    with pytest.raises(AudioError, match=r"gone\.wav"):
        [batches(False).batch(step) for step in range(20)]
    skipping = batches(True)
    for step in range(20):
        skipping.batch(step)
    assert skipping.left_out()["mine: AudioError"] > 0


def test_tokens_of_short_answers_weigh_more() -> None:
    targets = torch.tensor([NOT_LEARNT, 5, NOT_LEARNT, 7, 8, 9, 6, NOT_LEARNT])
    assert answer_weights(targets, 0.0).tolist() == [1.0] * 5
    expected = [1.0, *[4**-0.5] * 4]
    assert answer_weights(targets, 0.5).tolist() == pytest.approx(expected)
    assert np.isclose(float(answer_weights(targets, 1.0).sum()), 2.0)
