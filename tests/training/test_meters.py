"""What the log says: each source's own loss, operations as torch counts them, numbers for TensorBoard."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from threading import Event

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from afnext.errors import AfnextError
from afnext.training import loop
from afnext.training.config import LoraConfig, TrainConfig
from afnext.training.data.batches import Batches
from afnext.training.data.packing import NOT_LEARNT, hear, hidden_states
from afnext.training.network.flops import Flops, forward_flops, measured_peak
from afnext.training.run.meters import Meters, SourceLosses
from afnext.training.run.records import START, read_records
from afnext.training.run.spans import said
from afnext.training.run.state import Progress
from afnext.training.run.tensorboard import Board
from afnext.training.stage import StageRun
from tests.training.conftest import stage


@pytest.fixture
def short(recipe: TrainConfig) -> TrainConfig:
    """One stage of four steps on two sources."""
    only = stage("all", ["net"], [], mixture={"short": 0.5, "longer": 0.5}, audio_seconds=40.0)
    return dataclasses.replace(recipe, stages=[only], save_every=0, evaluate_every=0)


@pytest.mark.slow
def test_the_log_has_each_sources_loss_and_tensorboard_what_the_log_has(
    short: TrainConfig, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses beside those of the same tokens one source at a time, by torch's own cross-entropy."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = loop.Run.losses
    wanted: dict[str, list[torch.Tensor]] = defaultdict(list)

    def watched(run, batch, stage):  # type: ignore[no-untyped-def]
        packed = batch.packed
        with torch.no_grad():
            hidden = hidden_states(run.net, packed, hear(run.net, packed.audio)[1])
            logits = run.net.language_model.lm_head(hidden)
        for number, name in enumerate(packed.sources):
            own = (packed.conversation == number) & (packed.targets != NOT_LEARNT)
            plain = F.cross_entropy(logits[own], packed.targets[own], reduction="none")
            wanted[name].append(plain)
        return losses(run, batch, stage)

    monkeypatch.setattr(loop.Run, "losses", watched)
    monkeypatch.setattr(loop, "Journal", partial(loop.Journal, records=1))  # of all steps
    model = dataclasses.replace(short.model, times="digits")  # no smoothing of times
    loop.train(
        dataclasses.replace(short, model=model), tmp_path, data=shared_data, tensorboard=True
    )
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    (train,) = [r for r in records if r["kind"] == "train"]
    assert set(wanted) == {"short", "longer"}
    for name, parts in wanted.items():
        assert train[f"loss/{name}"] == pytest.approx(float(torch.cat(parts).mean()), rel=1e-4)
    assert train["gradient_norm"] > 0
    assert 0 < train["peak_share"] < 1
    assert 0 <= train["data_wait"] <= 1

    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    found = {tag: board.Scalars(tag)[-1] for tag in board.Tags()["scalars"]}
    for name in ("answer_loss", "loss/short", "gradient_norm", "tokens_per_second", "peak_share"):
        assert found[f"train/{name}"].step == 4
        assert found[f"train/{name}"].value == pytest.approx(train[name], rel=1e-3, abs=1e-5)


def test_steps_that_are_taken_anew_are_once_in_the_log_and_on_the_board(
    short: TrainConfig, tmp_path: Path
) -> None:
    """A run that was killed before it was kept and began anew, was killed after its third step, went on from
    the second, ended before another record, and went on from there once more.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (only,) = short.stages
    log = tmp_path / "log.jsonl"
    for start, steps in ((None, (1, 2)), (None, (1, 2, 3)), (2, ()), (2, (3, 4))):
        board = Board(tmp_path, short, None if start is None else Progress(0, start))
        journal = loop.Journal(log)
        journal.board = board
        journal.write(START, stage=only.name, step=start or 0)
        for step in steps:
            journal.write("train", stage=only.name, step=step, answer_loss=10.0 * len(steps) + step)
        board.close()
        with log.open("a") as file:
            file.write('{"kind": "tra')  # as a kill would
    wanted = [(1, 31.0), (2, 32.0), (3, 23.0), (4, 24.0)]
    train = [r for r in read_records(log) if r["kind"] == "train"]
    assert [(r["step"], r["answer_loss"]) for r in train] == wanted
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(s.step, s.value) for s in found.Scalars("train/answer_loss")] == wanted


def test_tensorboard_that_is_missing_is_one_line(
    short: TrainConfig, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    for name in [n for n in sys.modules if n.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(AfnextError, match=r"pip install 'afnext\[tensorboard\]'"):
        loop.train(short, tmp_path, data=shared_data, tensorboard=True)


def test_losses_of_a_step_are_read_at_once(
    short: TrainConfig, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To read a number is to wait for the device."""
    only = dataclasses.replace(short.stages[0], steps=1, accumulate=3)
    journal = loop.Journal(tmp_path / "log.jsonl")
    config = dataclasses.replace(short, stages=[only])
    run = loop.Run(config, tmp_path, *loop.prepare(config, shared_data, journal), journal)
    under_way = StageRun(run, 0, Event())
    batches = run.batches(only, run.sources)
    run.by_source = SourceLosses(batches.mixture.names, run.device)
    read, tolist = [], torch.Tensor.tolist

    def watched(self: torch.Tensor) -> object:
        if self.is_floating_point():
            read.append(self.shape)
        return tolist(self)

    step = batches[next(batches.plans())]
    monkeypatch.setattr(torch.Tensor, "tolist", watched)
    losses = under_way._gradients(step)
    assert read == [(1,)]
    assert losses.keys() == {"answer_loss"}
    assert losses["answer_loss"] > 0


def test_operations_are_those_that_torch_counts(
    short: TrainConfig, tmp_path: Path, shared_data: Path
) -> None:
    """Of a forward, without attention, which torch does not count where the kernel is ours."""
    journal = loop.Journal(tmp_path / "log.jsonl")
    run = loop.Run(short, tmp_path, *loop.prepare(short, shared_data, journal), journal)
    batches: Batches = run.batches(short.stages[0], run.sources)
    packed = batches.first(1)[0].packed
    config = run.net.config
    # Under autocast products are torch's own, which it counts.
    autocast = torch.autocast("cpu", torch.bfloat16)
    with autocast, FlopCounterMode(display=False) as counter:
        hidden = hidden_states(run.net, packed, hear(run.net, packed.audio)[1])
        run.net.language_model.lm_head(hidden[packed.targets != NOT_LEARNT])
    got = forward_flops(config, packed)
    lengths = [n for plan in packed.audio.plans for n in plan.lengths]
    encoder = 4 * config.audio.hidden_size * sum(n * n for n in lengths)
    pairs = sum(
        t * t / 2 + sum(n * t + n * n / 2 for n in branches)
        for t, branches in zip(packed.trunks, packed.branches, strict=True)
    )
    heads = config.text.num_attention_heads * config.text.head_dim
    attention = (
        config.audio.num_hidden_layers * encoder + config.text.num_hidden_layers * 4 * heads * pairs
    )
    total = got.encoder + got.adaptor + got.decoder + got.head
    assert total - attention == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_of_what_is_frozen_backward_goes_no_further_than_it_must() -> None:
    forward = Flops(1000.0, 100.0, 10.0, 1.0)
    assert forward.step(["net.audio_tower.layers.0.fc1.weight"]) == 3000 + 200 + 22
    assert forward.step(["net.multi_modal_projector.linear_1.weight"]) == 1000 + 300 + 22
    assert forward.step(["net.language_model.lm_head.weight"]) == 1000 + 100 + 33
    every = ["net.audio_tower.x", "net.multi_modal_projector.x", "net.language_model.x"]
    assert forward.step(every) == 3 * 1111


def test_shares_are_of_all_the_time_and_losses_of_the_steps_that_were_used() -> None:
    meters = Meters(peak=100.0)
    counts = {"seconds": 2.0, "tokens": 10.0, "audio": 4.0, "flops": 50.0, "wait": 0.5}
    of = {"answers": 3.0, "loss/a": 6.0, "tokens/a": 3.0, "tokens/b": 0.0}
    meters.add({"answer_loss": 2.0, "size_loss": 1.0}, counts | of, True)
    of = {"answers": 1.0, "loss/a": torch.nan, "tokens/a": 1.0, "tokens/b": 1.0}
    meters.add({"answer_loss": torch.nan, "size_loss": 7.0}, counts | of, False)
    found = meters.report(0.25)
    assert found == {
        "answer_loss": 2.0, "size_loss": 1.0, "loss/a": 2.0, "learning_rate": 0.25, "tokens_per_second": 5.0,
        "audio_seconds_per_second": 2.0, "peak_share": 0.25, "data_wait": 0.25, "skipped": 1,
    }  # fmt: skip


def test_a_step_counts_for_as_many_answers_as_it_has() -> None:
    """So that the loss of answers is the mean of that of the sources, also where samples were left out."""
    meters = Meters(peak=1.0)
    counts = {"seconds": 1.0, "tokens": 1.0, "audio": 0.0, "flops": 0.0, "wait": 0.0}
    for a, b in (([6.0, 4.0, 2.0], [1.0]), ([5.0], []), ([], [])):
        of = {"loss/a": sum(a), "tokens/a": len(a), "loss/b": sum(b), "tokens/b": len(b)}
        losses = [*a, *b]
        mean = sum(losses) / max(1, len(losses))
        meters.add({"answer_loss": mean}, counts | of | {"answers": len(losses)}, True)
    found = meters.report(0.0)
    assert found["answer_loss"] == (4 * found["loss/a"] + found["loss/b"]) / 5
    meters.add({"answer_loss": 0.0}, counts | {"answers": 0.0}, True)
    assert "answer_loss" not in meters.report(0.0)


def test_the_peak_is_no_less_than_another_products_rate() -> None:
    assert measured_peak(torch.device("cpu"), torch.float32) > 1e9


@pytest.mark.parametrize(
    ("steps", "seconds", "wanted"),
    [
        (100, 1.0, list(range(5, 101, 5))),  # a twentieth is sooner
        (7, 1.0, list(range(1, 8))),
        (1000, 1.0, list(range(20, 1001, 20))),  # 20 s are
        (2050, 0.001, [*range(102, 2050, 102), 2050]),
    ],
)
def test_records_come_as_often_as_they_are_due_whatever_is_told(
    steps: int, seconds: float, wanted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stage twenty, or as many as it has steps, and one every 20 s, whatever is told between."""
    now = [0.0]
    monkeypatch.setattr("afnext.training.run.monitor.time.monotonic", lambda: now[0])
    journal = loop.Journal(tmp_path / "log.jsonl")
    found = []
    for step in range(1, steps + 1):
        now[0] += seconds
        journal.advance("all", step, steps)
        if journal.due(step, steps):
            found.append(step)
    assert found == wanted


@pytest.mark.slow
def test_a_pipe_is_told_the_stage_the_step_and_the_time_left_and_the_picture_has_a_curve(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two stages of a few steps, far shorter than what is between two records otherwise."""
    stages = [stage("letters", ["net"], [], hearing="script", steps=6), stage("last", ["net"], [])]
    short = dataclasses.replace(recipe, stages=stages, save_every=0)
    loop.train(short, tmp_path, data=shared_data)
    told = [line for line in capsys.readouterr().err.splitlines() if "step" in line]
    train = [line for line in told if line.startswith("train: ")]
    assert len(train) == 6 + 4
    for step, line in enumerate(train[:5], 1):
        left = r"about [\d.]+ (s|min) left of the stage"
        assert re.match(rf"train: letters 1/2, step {step} of 6, {left}: minutes=\S+ ", line), line
    assert train[5].startswith("train: letters 1/2, step 6 of 6: minutes=")
    assert train[-1].startswith("train: last 2/2, step 4 of 4: minutes=")
    assert any(line.startswith("held-out: letters 1/2, step 4 of 6, about ") for line in told)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    first = next(record for record in records if record["kind"] == "train")
    assert list(first)[:5] == ["kind", "stage", "step", "minutes", "answer_loss"]
    drawn = (tmp_path / "losses.svg").read_text()
    curves = re.findall(r'<g id="line2d_\d+">\s*<path d="([^"]+)"', drawn)
    assert max(path.count("L") for path in curves) >= 9


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [False, True])
def test_the_number_of_parameters_and_the_tables_are_of_the_same(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str],
    adapted: bool,
) -> None:  # fmt: skip
    """With what is said of the difference: positions are in no table, heads not in the model, and adapters in
    the tables of stages that train them.
    """
    stages = [dataclasses.replace(recipe.stages[0], steps=1)]
    if adapted:
        lora = LoraConfig(4, 8.0, "language_model.*q_proj")
        stages.append(stage("adapters", ["lora"], ["net", "heads"], lora=lora, steps=1))
    config = dataclasses.replace(recipe, stages=stages, evaluate_every=0, save_every=0)
    loop.train(config, tmp_path, data=shared_data)
    told = capsys.readouterr().err
    parameters = int(re.findall(r"start: parameters=(\d+)", told)[0])

    def said(line: str) -> int:
        return int(re.findall(line.replace("N", r"([\d,]+)"), told)[0].replace(",", ""))

    whole = parameters - said("of them N are the encoder's positions: fixed, in no table")
    whole += said("besides there are N of heads, which are thrown away")
    rows = re.findall(r"^  \S+ +([\d,]+)  (frozen|[\d.e-]+)$", told, re.MULTILINE)
    numbers = [int(number.replace(",", "")) for number, _ in rows]
    if adapted:
        adapters = said("of them N are adapters: in the tables of stages that train them")
        assert (sum(numbers[:4]), sum(numbers[4:])) == (whole - adapters, whole)
    else:
        assert sum(numbers) == whole
        assert "adapters" not in told


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [(0.4, "0.4 s"), (89.0, "89 s"), (91.0, "1.5 min"), (720.0, "12 min"), (12240.0, "3.4 h"),
     (172_900.0, "2 days"), (1e7, "116 days")],
)  # fmt: skip
def test_spans_are_told_in_the_unit_that_suits_them(seconds: float, wanted: str) -> None:
    assert said(seconds) == wanted


def test_small_rates_are_not_rounded_away(tmp_path: Path) -> None:
    journal = loop.Journal(tmp_path / "log.jsonl")
    journal.write("train", learning_rate=4.9e-6, loss=1.23456789, steps=123456789)
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    wanted = {"kind": "train", "learning_rate": 4.9e-6, "loss": 1.23457, "steps": 123456789}
    assert json.loads(line) == wanted


def test_what_takes_long_is_told_in_a_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line now and then, not one for each piece."""
    for every, lines in ((0.0, ["scenes: 1 of 2", "scenes: 2 of 2"]), (60.0, [])):
        journal = loop.Journal(tmp_path / "log.jsonl", every=every)
        for done in (1, 2):
            journal.advance("scenes", done, 2)
        journal.close()
        assert capsys.readouterr().err.splitlines() == lines
