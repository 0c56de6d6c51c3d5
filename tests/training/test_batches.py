"""Batches of a stage: what is drawn is what is heard and learnt, whichever source it is from."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from afnext.errors import AfnextError
from afnext.model import AudioBatch
from afnext.training import loop
from afnext.training.config import SourceConfig, TrainConfig
from afnext.training.data.batches import Batches, answer_weights
from afnext.training.data.packing import NOT_LEARNT
from afnext.training.data.shards import Recording, write_shard
from afnext.training.data.sources import Source
from afnext.training.distributed.world import Team
from afnext.training.network.objectives import share
from afnext.training.run.state import Cursors
from afnext.training.stage import EMPTY
from tests.training.conftest import stage

pytestmark = pytest.mark.slow


@pytest.fixture
def run(recipe: TrainConfig, shared_data: Path, tmp_path: Path) -> loop.Run:
    journal = loop.Journal(tmp_path / "log.jsonl")
    return loop.Run(recipe, tmp_path, *loop.prepare(recipe, shared_data, journal), journal)


def test_a_step_is_a_function_of_its_plan(run: loop.Run) -> None:
    """Two readers, one of which has made other steps before, give the same tensors."""
    last = run.config.stages[2]
    one, other = (run.batches(last, run.sources) for _ in range(2))
    plans = list(other.plans())
    assert list(one.plans()) == plans
    for plan in (plans[2], plans[1]):
        one[plan]
    for a, b in zip(one[plans[3]].batches, other[plans[3]].batches, strict=True):
        assert torch.equal(a.packed.ids, b.packed.ids)
        assert torch.equal(a.packed.audio.features, b.packed.audio.features)
        assert torch.equal(a.targets.active, b.targets.active)
    first, second = one[plans[3]].batches
    assert not torch.equal(first.packed.ids, second.packed.ids)


def test_a_step_is_the_same_however_it_is_cut(run: loop.Run) -> None:
    """Every objective and its gradients, of two batches of different sizes and of one of all of it. Only
    tokens that are read weigh by what the head makes of a batch's.
    """
    losses = dataclasses.replace(run.config.stages[2].losses, reading=0.0)
    short = dataclasses.replace(
        run.config.stages[2], mixture={"short": 1.0}, mixture_of={}, losses=losses
    )
    batches = run.batches(short, run.sources)
    drawn, _ = batches.mixture.draw(700, "cut", Cursors())
    pieces = ([drawn[:1], drawn[1:]], [drawn])
    cuts = [[batches._made(piece, [], []) for piece in cut] for cut in pieces]
    labelled = [len(batch.targets.labelled) for batch in cuts[0]]
    assert sum(labelled) == len(cuts[1][0].targets.labelled), "a recording is in two draws"
    assert max(labelled) > 1.5 * min(labelled), labelled
    run.trained.requires_grad_(True)
    found = []
    for cut in cuts:
        run.trained.zero_grad(set_to_none=True)
        told: Counter[str] = Counter()
        for batch in share(cut, short, Team(), run.world):
            parts = run.losses(batch, short)
            torch.stack(list(parts.values())).sum().backward()
            told.update({name: float(part.detach()) for name, part in parts.items()})
        gradients = [p.grad for p in run.trained.parameters() if p.grad is not None]
        found.append((dict(told), torch.cat([g.flatten() for g in gradients])))
    (cut_losses, cut_gradients), (losses_of_all, gradients_of_all) = found
    assert len(cut_losses) == 6
    assert cut_losses == pytest.approx(losses_of_all, rel=1e-5)
    error = (cut_gradients - gradients_of_all).norm() / gradients_of_all.norm()
    assert error < 1e-5


def test_teams_share_out_what_one_has_alone(run: loop.Run) -> None:
    """The plans of one process and of two: the same draws in the same order, wherever they begin."""
    last = run.config.stages[2]
    alone = list(run.batches(last, run.sources).plans())
    teams = [run.batches(last, run.sources, Team(rank, 2)) for rank in range(2)]
    for first in (0, 2):
        cursors = alone[first - 1].cursors if first else Cursors()
        spread = [list(team.plans(first, cursors)) for team in teams]
        for whole, *parts in zip(alone[first:], *spread, strict=True):
            assert whole.parts == tuple(part for plan in parts for part in plan.parts)
            assert {plan.step for plan in parts} == {whole.step}
            assert all(plan.cursors == whole.cursors for plan in parts)


def test_processes_make_the_same_batches_as_a_thread(run: loop.Run) -> None:
    """In order, whichever is ready first, with what each had to leave out."""
    short = dataclasses.replace(run.config.stages[2], steps=6, context_tokens=150)
    here, there = (list(run.batches(short, run.sources).ahead(0, Cursors(), 3, n)) for n in (0, 2))
    assert len(here) == len(there) == 6
    for a, b in zip(here, there, strict=True):
        assert (a.too_long, a.cursors) == (b.too_long, b.cursors)
        for one, other in zip(a.batches, b.batches, strict=True):
            assert torch.equal(one.packed.ids, other.packed.ids)
            assert torch.equal(one.packed.audio.features, other.packed.audio.features)
            assert torch.equal(one.weights, other.weights)
            assert one.targets.spelling == other.targets.spelling
    assert any(step.too_long for step in here), "nothing was left out: the test proves less"


def test_recordings_of_one_name_in_two_sources_are_two(run: loop.Run) -> None:
    """The names of synthesised recordings repeat from source to source; lengths and sounds differ."""
    both = stage("both", ["net", "heads"], [], audio_seconds=40.0, batch_tokens=8000,
                 mixture={"short": 1.0, "longer": 1.0})  # fmt: skip
    config = dataclasses.replace(run.config, stages=[both])
    batches = Batches(config, both, run.sources, run.tokenizer, run.template, run.words)
    (batch,) = batches.first(1)
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
    (batch,) = run.batches(run.config.stages[1], run.sources).first(1)
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
    steps = [batches[plan] for plan in batches.plans()]
    for packed in (batch.packed for step in steps for batch in step.batches):
        for group, trunk in zip(packed.branches, packed.trunks, strict=True):
            assert max(group) + trunk <= 120
    assert sum(step.too_long for step in steps) > 0


def test_a_batch_of_nothing_counts_for_nothing_and_many_end_the_run(
    run: loop.Run, tmp_path: Path
) -> None:
    """Other processes have theirs at the same time, so that there must be one; it moves no weight."""
    short = dataclasses.replace(
        run.config.stages[2], context_tokens=5, steps=EMPTY, mixture_of={}, mixture={"short": 1.0}
    )
    batches = run.batches(short, run.sources)
    plans = batches.plans()
    made = batches[next(plans)]
    assert made.too_long > 0
    assert all(len(batch.weights) == 0 and not batch.packed.paths for batch in made.batches)
    run.trained.requires_grad_(True)
    for batch in share(made.batches, short, Team(), run.world):
        sum(run.losses(batch, short).values()).backward()
    gradients = [p.grad for p in run.trained.parameters() if p.grad is not None]
    assert gradients
    assert all(float(g.abs().max()) == 0 for g in gradients)
    assert all(batches[plan].too_long for plan in plans)  # whoever makes it, whatever was before
    config = dataclasses.replace(run.config, stages=[short], evaluate_every=0, save_every=0)
    alone = loop.Run(config, tmp_path, run.sources, {}, run.journal)
    with pytest.raises(
        AfnextError, match=r"all: nothing that is drawn can be used; .* context_tokens: 5$"
    ):
        alone.train()
    assert alone.progress.step == EMPTY // short.accumulate


def with_broken(run: loop.Run, folder: Path, **limits: int) -> tuple[TrainConfig, dict]:
    """A recipe of one stage and its sources, one of which has a missing recording, one cut short, one whose
    shard is broken, and a line that is no JSON once its index is made."""
    said = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]
    write_shard(folder / "s.tar", [Recording("0", np.zeros(16_000, np.float32), 16_000)])
    soundfile.write(folder / "good.wav", np.zeros(16_000), 16_000)
    whole = (folder / "good.wav").read_bytes()
    (folder / "cut.wav").write_bytes(whole[: len(whole) // 2])
    with (folder / "s.tar").open("r+b") as file:
        file.truncate(20_000)
    names = ["gone.wav", "cut.wav", "s.tar/0.wav", "good.wav"]
    records = [{"sound": n, "duration": 1.0, "conversations": said} for n in names]
    lines = [json.dumps(record) for record in [*records, {"conversations": said}]]
    path = folder / "x.jsonl"
    path.write_text("\n".join(lines) + "\n")
    source = Source(path, **limits)
    path.write_text("\n".join([*lines[:-1], "{" + "x" * (len(lines[-1]) - 1)]) + "\n")
    only = stage("only", ["net"], [], mixture={"mine": 1.0, "short": 2.0}, steps=6)
    config = dataclasses.replace(run.config, stages=[only], evaluate_every=0, save_every=0)
    return config, {**run.sources, "mine": source}


def test_broken_samples_are_listed_and_left_out_up_to_a_limit(
    run: loop.Run, tmp_path: Path
) -> None:
    """Each once, with the file that is at fault; what else a batch has is learnt."""
    config, sources = with_broken(run, tmp_path, broken_limit=4)
    out, journal = tmp_path / "out", loop.Journal(tmp_path / "broken-log.jsonl")
    out.mkdir()
    loop.Run(config, out, sources, {}, journal).train()
    listed = [json.loads(line) for line in (out / "broken.jsonl").read_text().splitlines()]
    assert {sample["source"] for sample in listed} == {"mine"}
    assert len({sample["key"] for sample in listed}) == len(listed) == 4
    reasons = " ".join(sample["why"] for sample in listed)
    for name in ("gone.wav", "cut.wav", "s.tar is broken", "a line is no JSON"):
        assert name in reasons
    assert "--" not in reasons  # no options of other commands
    log = [json.loads(line) for line in journal.path.read_text().splitlines()]
    assert log[-1] == {"kind": "left out", "stage": "only", "mine: broken": 4}

    config, sources = with_broken(run, tmp_path, broken_limit=3)
    again = tmp_path / "again"
    again.mkdir()
    with pytest.raises(
        AfnextError, match=r"^mine: 4 samples .* is 3 .*; the last one: x.jsonl, byte"
    ):
        loop.Run(config, again, sources, {}, journal).train()
    assert len((again / "broken.jsonl").read_text().splitlines()) == 4


def test_the_loss_of_answers_is_that_of_what_was_not_left_out(
    run: loop.Run, tmp_path: Path
) -> None:
    """Of most steps nothing is left: they count for nothing."""
    config, sources = with_broken(run, tmp_path, broken_limit=4)
    only = stage("only", ["net"], [], mixture={"mine": 1.0}, steps=10, batch_tokens=40)
    journal = loop.Journal(tmp_path / "losses.jsonl", records=1)
    loop.Run(dataclasses.replace(config, stages=[only]), tmp_path, sources, {}, journal).train()
    log = [json.loads(line) for line in journal.path.read_text().splitlines()]
    (told,) = [record for record in log if record["kind"] == "train"]
    assert told["answer_loss"] == pytest.approx(told["loss/mine"], rel=1e-4)


def test_one_broken_record_of_a_recording_leaves_the_others(run: loop.Run, tmp_path: Path) -> None:
    """And it is the one that is listed, however often its recording is drawn."""
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    questions = ["<sound>\nFirst?", "<sound>\nSecond?", "In this <sound>\nwhat?", "<sound>\nLast?"]
    records = [
        {"id": str(i), "sound": "a.wav", "duration": 1.0, "conversations": [
            {"from": "human", "value": question}, {"from": "gpt", "value": "A dog."}]}
        for i, question in enumerate(questions)
    ]  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(records))
    only = stage("only", ["net"], [], mixture={"mine": 1.0}, batch_tokens=100)
    config = dataclasses.replace(run.config, stages=[only], evaluate_every=0, save_every=0)
    sources = {"mine": Source(tmp_path / "r.json", broken_limit=1)}
    journal = loop.Journal(tmp_path / "one.jsonl")
    begun = loop.Run(config, tmp_path, sources, {}, journal)
    batches = begun.batches(only, sources)
    assert [len(batches[plan].batches[0].packed.tasks) for plan in batches.plans()] == [3] * 4
    begun.train()
    (listed,) = map(json.loads, (tmp_path / "broken.jsonl").read_text().splitlines())
    assert listed["key"] == "r.json, record 3"
    assert "2: a sound stands within" in listed["why"]


def test_what_is_kept_of_conversations_is_bounded_in_bytes(
    run: loop.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches are the same without."""
    stage = run.config.stages[2]
    wanted = [b.packed.ids for b in run.batches(stage, run.sources).first(4)]
    for most in (0, 10_000):
        monkeypatch.setattr("afnext.training.data.batches.CACHE_BYTES", most)
        batches = run.batches(stage, run.sources)
        found = [b.packed.ids for b in batches.first(4)]
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
        held = sum(item.nbytes for item in batches._encoded.values())
        assert batches._held == held <= most
        assert bool(held) == bool(most)


def test_by_default_the_first_broken_sample_ends_a_run(run: loop.Run, tmp_path: Path) -> None:
    config, sources = with_broken(run, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(
        AfnextError, match=r"mine: . samples? cannot be read, broken_limit is 0 .*: x.jsonl"
    ):
        loop.Run(config, out, sources, {}, loop.Journal(tmp_path / "log.jsonl")).train()


def test_samples_beyond_the_limit_are_listed_also_where_a_run_does_not_begin(
    recipe: TrainConfig, tmp_path: Path
) -> None:
    """A limit that is passed while records are read; with the records mended, the list is of what is left."""
    good, bad = ([{"from": "human", "value": "What?"}, {"from": "gpt", "value": told}]
                 for told in ("A dog.", ""))  # fmt: skip
    path, out = tmp_path / "x.jsonl", tmp_path / "out"
    only = stage("only", ["net"], [], mixture={"mine": 1.0}, steps=1)
    sources = {"mine": SourceConfig(str(path), broken_limit=1)}
    config = dataclasses.replace(
        recipe, stages=[only], sources=sources, synthesis=None, held_out=None, evaluate_every=0
    )

    def write(*said: list) -> None:
        path.write_text("".join(json.dumps({"conversations": turns}) + "\n" for turns in said))

    def listed() -> list[dict]:
        return [json.loads(line) for line in (out / "broken.jsonl").read_text().splitlines()]

    write(good, bad, bad)
    with pytest.raises(
        AfnextError, match=rf"^mine: 2 samples .* is 1 \({out}/broken.jsonl lists"
    ) as e:
        loop.train(config, out)
    assert f"the last one: {listed()[1]['key']}: an answer is empty" in str(e.value)
    assert [(s["source"], s["why"]) for s in listed()] == [("mine", "an answer is empty")] * 2
    assert len({s["key"] for s in listed()}) == 2
    write(good, good, bad)
    loop.train(config, out)
    assert len(listed()) == 1


def test_tokens_of_short_answers_weigh_more() -> None:
    targets = torch.tensor([NOT_LEARNT, 5, NOT_LEARNT, 7, 8, 9, 6, NOT_LEARNT])
    assert answer_weights(targets, 0.0).tolist() == [1.0] * 5
    expected = [1.0, *[4**-0.5] * 4]
    assert answer_weights(targets, 0.5).tolist() == pytest.approx(expected)
    assert np.isclose(float(answer_weights(targets, 1.0).sum()), 2.0)
