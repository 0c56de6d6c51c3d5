"""The loop: it learns, it resumes where it stopped, and what it writes loads here and in transformers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import afnext
from afnext.audio.windows import AudioWindow
from afnext.errors import AfnextError
from afnext.model import AudioBatch, AudioLanguageModel, ModelConfig
from afnext.training import loop
from afnext.training.config import LossWeights, ModelShape, TrainConfig
from afnext.training.data.batches import Batches
from afnext.training.run.checkpoints import newest, read
from afnext.training.run.export import appearing, model_config
from tests.training.conftest import stage

pytestmark = pytest.mark.slow


def _log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_from_data_to_model_folder(
    recipe: TrainConfig, trained: Path, shared_data: Path
) -> None:
    folder = trained / "model"
    kinds = [r["kind"] for r in _log(trained)]
    assert kinds[0] == "start"
    assert "held-out" in kinds
    assert {p.name for p in folder.iterdir()} == {
        "config.json", "digests.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    }  # fmt: skip
    net = AudioLanguageModel.from_pretrained(folder, dtype=torch.float32)
    saved = read(newest(trained / "checkpoints"))
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, saved[f"weights/net.{name}"])
    with pytest.raises(AfnextError, match="resume it or choose another"):
        loop.train(recipe, trained, data=shared_data)
    more = [*recipe.stages[:-1], dataclasses.replace(recipe.stages[-1], steps=9)]
    with pytest.raises(AfnextError, match="all has ended after 4 steps and cannot go on to 9"):
        loop.train(dataclasses.replace(recipe, stages=more), trained, data=shared_data, resume=True)


def test_a_resumed_run_ends_where_an_unbroken_one_does(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path, trained: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Broken in each stage; weights are bit-equal, so optimizer, data and schedule all resumed."""
    made, broken = Batches.__getitem__, tmp_path / "broken"
    for name, stop in (("ears", 2), ("letters", 1), ("all", 3)):

        def fails(self, plan, name=name, stop=stop):
            if (self.stage.name, plan.step) == (name, stop):
                raise KeyboardInterrupt
            return made(self, plan)

        monkeypatch.setattr(Batches, "__getitem__", fails)
        with pytest.raises(KeyboardInterrupt):
            loop.train(recipe, broken, data=shared_data, resume=True)
    monkeypatch.setattr(Batches, "__getitem__", made)
    resumed = loop.train(recipe, broken, data=shared_data, resume=True)
    a, b = (load_file(f / "model.safetensors") for f in (trained / "model", resumed))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_chain_can_be_run_in_parts(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path, trained: Path
) -> None:
    whole = trained / "model"
    parts = tmp_path / "parts"
    first = loop.train(recipe, parts, data=shared_data, stages=["ears"])
    assert not torch.equal(*(load_file(f / "model.safetensors")["language_model.model.norm.weight"]
                             for f in (whole, first)))  # fmt: skip
    last = loop.train(recipe, parts, data=shared_data, resume=True)
    a, b = load_file(whole / "model.safetensors"), load_file(last / "model.safetensors")
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(AfnextError, match="no stage is called 'eyes'"):
        loop.train(recipe, tmp_path / "x", data=shared_data, stages=["eyes"])


def test_a_stage_trains_what_it_names_and_nothing_else(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path
) -> None:
    run = dataclasses.replace(recipe, stages=recipe.stages[:1])
    begun = loop.Run(run, tmp_path / "x", *_sources(run, shared_data, tmp_path))
    a = {name: p.clone() for name, p in begun.net.state_dict().items()}
    b = begun.train() and begun.net.state_dict()
    for name in a:
        moved = not torch.equal(a[name], b[name])
        assert moved == (name.startswith("audio_tower") and "embed_positions" not in name), name


@pytest.mark.parametrize(
    ("train", "freeze", "message"),
    [
        (
            ["audio_tower"],
            ["heads", "language_model"],
            "multi_modal_projector.* it matches nothing",
        ),
        (["net", "audio_tower"], ["heads"], "it matches 'net' and 'audio_tower'"),
        (["net", "heads"], ["ears"], "the pattern 'ears' matches no parameter"),
    ],
)
def test_what_is_neither_trained_nor_frozen_is_an_error_before_anything_runs(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path,
    train: list[str], freeze: list[str], message: str,
) -> None:  # fmt: skip
    wrong = stage("wrong", train, freeze, losses=LossWeights(frames=1.0))
    run = dataclasses.replace(recipe, stages=[wrong])
    with pytest.raises(AfnextError, match=message):
        loop.train(run, tmp_path, data=shared_data)
    assert list(tmp_path.iterdir()) == []


SAID = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]
WRITTEN = """
name: x
model: {pieces: 400, audio_width: 32, audio_layers: 1, audio_heads: 2, audio_ffn: 48, width: 32, layers: 1,
  heads: 2, kv_heads: 1, ffn: 48}
sources: {mine: {path: FOLDER/x.jsonl}}
stages:
  - {name: a, steps: 1, train: {net: 1e-3}, mixture: {mine: 1}}
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{net: 1e-3}", "{nett: 1e-3}"), "a: the pattern 'nett' matches no parameter"),
        (("x.jsonl", "none"), "sources: mine: cannot read conversations from .*/none: No such file"),
        (("FOLDER/x.jsonl", "no/where"), f"sources: mine: cannot read .* from {Path.cwd()}/no/where: "),
        (("mixture: {mine", "mixture: {yours"), "a: mixture: no source is called 'yours'"),
        (("name: x", "name: x\ninit: no/such/folder"), "init: model no/such/folder: no such folder"),
        (("name: x", "name: x\ninit: FOLDER/tuned"), "init: model .*/tuned: is a run's .*/tuned/model$"),
        (("name: x", "name: x\naudio_tower: no/such/folder"), "audio_tower: model no/such/folder: "),
        (("name: x", "name: x\naudio_tower: nano"), "audio_tower: that of nano has another geometry"),
        (("name: x", "name: x\naudio_tower: FOLDER/other"), "audio_tower: .*/other has none, nor "),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_run_is_told_with_its_file_and_leaves_nothing(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"conversations": SAID}) + "\n")
    (tmp_path / "tuned" / "model").mkdir(parents=True)
    (tmp_path / "tuned" / "model" / "config.json").touch()
    (tmp_path / "other").mkdir()
    save_file({"x": torch.zeros(1)}, tmp_path / "other" / "model.safetensors")
    file, out = tmp_path / "r.yaml", tmp_path / "out"
    file.write_text(WRITTEN.replace(*change).replace("FOLDER", str(tmp_path)))
    with pytest.raises(AfnextError, match=f"^{file}: {message}"):
        loop.train(file, out)
    assert list(out.iterdir()) == []


def test_a_run_is_no_model_but_has_one(trained: Path) -> None:
    with pytest.raises(AfnextError, match=f"{trained}.*; its model is {trained}/model$"):
        AudioLanguageModel.from_pretrained(trained)


def test_a_run_in_a_file_is_refused(recipe: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "clip.wav").touch()
    with pytest.raises(AfnextError, match=r"^out: .*clip.wav is a file, and a run needs a folder$"):
        loop.train(recipe, tmp_path / "clip.wav")


def test_a_stage_says_before_its_first_step_how_many_records_are_too_long(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = {"conversations": SAID}
    long = {"conversations": SAID, "sound": "never-read.wav", "duration": 31.0}
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (text, long, long)))
    file = tmp_path / "r.yaml"
    file.write_text(WRITTEN.replace("FOLDER", str(tmp_path)))
    loop.train(file, tmp_path / "out")
    line = "a: mine: 2 of 3 records are longer than audio_seconds: 30 and are left out"
    said = capfd.readouterr().err
    assert said.count(line) == 1
    assert said.index(line) < said.index("train: a 1/1, step ")


def test_a_stage_that_learnt_nothing_is_an_error_and_makes_no_model(tmp_path: Path) -> None:
    """Nor does it where the run goes on."""
    (tmp_path / "x.jsonl").write_text(json.dumps({"conversations": SAID}) + "\n")
    file, out = tmp_path / "r.yaml", tmp_path / "out"
    short = "save_every: 1" + WRITTEN.replace("steps: 1", "steps: 2, context_tokens: 4")
    file.write_text(short.replace("FOLDER", str(tmp_path)))
    for _ in range(2):
        with pytest.raises(
            AfnextError, match=r"a: no step .* nothing drawn fits context_tokens: 4$"
        ):
            loop.train(file, out, resume=True)
    assert not (out / "model").exists()
    log = [record for record in _log(out) if record["kind"] == "left out"]
    assert log[0]["longer than context_tokens (times drawn)"] > 0


def test_a_model_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    """One that is there is written into."""
    folder = tmp_path / "model"
    with suppress(KeyboardInterrupt), appearing(folder) as made:
        (made / "half").touch()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    for name in ("first", "second"):
        with appearing(folder) as made:
            (made / name).touch()
            assert folder.exists() == (name == "second")
    assert {path.name for path in folder.iterdir()} == {"first", "second"}
    assert list(tmp_path.iterdir()) == [folder]


def _sources(run: TrainConfig, data: Path, out: Path):
    journal = loop.Journal(out / "log.jsonl", every=0.0)
    return *loop.prepare(run, data, journal), journal


def test_losses_fall(recipe: TrainConfig, tmp_path: Path, shared_data: Path) -> None:
    """Each of the objectives, on its own data, in forty steps."""
    ears = dataclasses.replace(
        recipe.stages[0], steps=40, train={"audio_tower": 5e-3, "heads": 5e-3}
    )
    every = dataclasses.replace(
        recipe.stages[2], steps=40, mixture={"short": 1.0}, mixture_of={}, accumulate=1,
        train={"net": 5e-3, "heads": 5e-3},
    )  # fmt: skip
    run = dataclasses.replace(recipe, stages=[ears, every], evaluate_every=0, save_every=0)
    (tmp_path / "x").mkdir()
    loop.Run(run, tmp_path / "x", *_sources(run, shared_data, tmp_path)).train()
    log = [r for r in _log(tmp_path) if r["kind"] == "train"]
    for name, part in (("ears", "frame_loss"), ("all", "answer_loss"), ("all", "alignment_loss"),
                       ("all", "clock_loss")):  # fmt: skip
        losses = [r[part] for r in log if r["stage"] == name and part in r]
        assert sum(losses[-5:]) < 0.8 * sum(losses[:5]), (name, part)


def test_gradients_that_are_not_finite_are_left_out_and_end_a_run_when_they_stay(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, calls = loop.Run.losses, []

    def sometimes(self, batch, stage):
        calls.append(stage.name)
        parts = losses(self, batch, stage)
        return {k: v * (torch.nan if len(calls) in wrong else 1.0) for k, v in parts.items()}

    monkeypatch.setattr(loop.Run, "losses", sometimes)
    run = dataclasses.replace(recipe, stages=recipe.stages[:1], evaluate_every=0)
    wrong = range(2, 3)
    weights = load_file(loop.train(run, tmp_path / "a", data=shared_data) / "model.safetensors")
    assert all(bool(w.isfinite().all()) for w in weights.values())
    calls.clear()
    wrong = range(2, 100)
    long = dataclasses.replace(run, stages=[dataclasses.replace(run.stages[0], steps=30)])
    with pytest.raises(AfnextError, match="10 steps in a row were not finite"):
        loop.train(long, tmp_path / "b", data=shared_data)
    saved = read(newest(tmp_path / "b" / "checkpoints"))
    assert all(bool(w.isfinite().all()) for w in saved.values())


def test_a_chain_begins_with_a_model_folder(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path
) -> None:
    """As the recipes for 7B do: weights, tokenizer and template of another model."""
    first = loop.train(dataclasses.replace(recipe, stages=[]), tmp_path / "a", data=shared_data)
    last = stage("last", ["language_model"], ["audio_tower", "projector"])
    after = dataclasses.replace(recipe, init=str(first), stages=[last])
    folder = loop.train(after, tmp_path / "b", data=shared_data)
    a, b = load_file(first / "model.safetensors"), load_file(folder / "model.safetensors")
    for name in a:
        assert torch.equal(a[name], b[name]) != name.startswith("language_model"), name
    assert (folder / "tokenizer.json").read_text() == (first / "tokenizer.json").read_text()


def test_a_chain_begins_with_the_audio_tower_of_a_model(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path
) -> None:
    """What else there is is drawn at random, as without it."""
    first = loop.train(dataclasses.replace(recipe, stages=[]), tmp_path / "a", data=shared_data)
    other = dataclasses.replace(recipe, seed=recipe.seed + 1, stages=[])
    plain = load_file(loop.train(other, tmp_path / "b", data=shared_data) / "model.safetensors")
    given = dataclasses.replace(other, audio_tower=str(first))
    found = load_file(loop.train(given, tmp_path / "c", data=shared_data) / "model.safetensors")
    heard = load_file(first / "model.safetensors")
    for name in found:
        whose = heard if name.startswith("audio_tower") else plain
        assert torch.equal(found[name], whose[name]), name
    # Nothing but the tower is asked for, and that neither where the run goes on.
    torn = tmp_path / "torn"
    torn.mkdir()
    save_file(
        {n: w for n, w in heard.items() if n.startswith("audio_tower")}, torn / "model.safetensors"
    )
    alone = dataclasses.replace(given, audio_tower=str(torn))
    again = load_file(loop.train(alone, tmp_path / "e", data=shared_data) / "model.safetensors")
    assert all(torch.equal(found[name], again[name]) for name in found)
    (torn / "model.safetensors").unlink()
    only = dataclasses.replace(alone, stages=recipe.stages[:1])
    begun = dataclasses.replace(given, stages=recipe.stages[:1])
    loop.train(begun, tmp_path / "f", data=shared_data)
    loop.train(only, tmp_path / "f", data=shared_data, resume=True)
    layers = recipe.model.audio_layers + 1
    wider = dataclasses.replace(given, model=dataclasses.replace(recipe.model, audio_layers=layers))
    with pytest.raises(AfnextError, match="has another geometry than model says"):
        loop.train(wider, tmp_path / "d", data=shared_data)
    with pytest.raises(AfnextError, match="init has an audio tower already"):
        dataclasses.replace(given, init="nano")


def test_another_rote_and_times_in_digits_are_trained_and_load(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path
) -> None:
    """What is held out is scored too, though no time has a token."""
    shape = dataclasses.replace(recipe.model, rote="time", times="digits")
    folder = loop.train(dataclasses.replace(recipe, model=shape), tmp_path, data=shared_data)
    assert [r["stage"] for r in _log(tmp_path) if r["kind"] == "held-out"] == ["letters", "all"]
    net = AudioLanguageModel.from_pretrained(folder, dtype=torch.float32)
    assert net.rote.config.kind == "time"
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert net.config.text.vocab_size == backend.get_vocab_size()
    assert backend.encode("<t>4.5</t>").tokens == ["<t>", "4", ".", "5", "</t>"]
    none = dataclasses.replace(shape, rote="none")
    assert ModelConfig.from_dict(model_config(none, backend)).rote.kind == "none"
    plain = model_config(ModelShape(), backend)
    assert "rote" not in plain  # the released models' layout, as before
    assert ModelConfig.from_dict(plain).rote.kind == "axial"


def test_transformers_gives_the_same_logits(trained: Path) -> None:
    """The exported folder in transformers' own class: float32, so 1e-4 of the largest logit."""
    from transformers import MusicFlamingoForConditionalGeneration, WhisperFeatureExtractor

    folder = trained / "model"
    theirs = MusicFlamingoForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    ours = AudioLanguageModel.from_pretrained(folder, dtype=torch.float32)
    samples = np.random.default_rng(0).standard_normal(40_000).astype(np.float32) * 0.1
    window = AudioWindow(samples, 0, len(samples))
    sound = ours.config.audio_token_id
    ids = torch.tensor([[1, 2, *[sound] * window.num_tokens, 3, 4, 5]])
    mel = WhisperFeatureExtractor(feature_size=128, return_attention_mask=True)(
        samples, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    with torch.no_grad():
        wanted = theirs(
            input_ids=ids,
            input_features=mel["input_features"],
            input_features_mask=mel["attention_mask"],
        ).logits
        got = ours(ids, AudioBatch.collate([[window]]))
    assert (got - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_a_device_that_is_not_there_is_one_line(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path
) -> None:
    with pytest.raises(AfnextError, match="device: 'cuda:99' cannot be used"):
        loop.train(recipe, tmp_path, data=shared_data, device="cuda:99")


def test_what_is_watched_is_what_is_held_out(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path
) -> None:
    """A mixture may have sources of which nothing is held out; and all of them."""
    assert recipe.held_out is not None
    short = {"short": recipe.held_out.sets["short"]}
    stages = [
        dataclasses.replace(
            recipe.stages[2],
            mixture_of={},
            mixture=mixture,
            name=name,
            per_recording_of={"longer": 2},
        )
        for name, mixture in (("both", {"short": 0.5, "longer": 0.5}), ("other", {"longer": 1.0}))
    ]
    config = dataclasses.replace(
        recipe, stages=stages, held_out=dataclasses.replace(recipe.held_out, sets=short)
    )
    loop.train(config, tmp_path, data=shared_data / "watched")
    assert [r["stage"] for r in _log(tmp_path) if r["kind"] == "held-out"] == ["both"]


@pytest.mark.parametrize("held_out", [True, False])
def test_what_is_shown_is_held_out_or_else_what_the_stage_learnt(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str],
    held_out: bool,
) -> None:  # fmt: skip
    """Of a stage that trains answers about audio; a sample that cannot be made ends no run."""
    asked = []

    def show(folder, sources, path, longest, is_held_out):  # type: ignore[no-untyped-def]
        asked.append((sorted(sources), path.name, longest, is_held_out, folder.exists()))
        raise AfnextError("no")

    last = stage("last", ["net"], [], audio_seconds=40.0, steps=1)
    read = stage("read", ["net"], [], hearing="script", steps=1)
    config = dataclasses.replace(recipe, stages=[read, last], evaluate_every=0)
    if not held_out:
        config = dataclasses.replace(config, held_out=None)
    loop.train(config, tmp_path, data=shared_data, show=show)
    sources, longest = (["longer", "short"], 40.0) if held_out else (["short"], 30.0)
    assert asked == [(sources, "samples-last.md", longest, held_out, True)]
    assert "samples-last.md is not written: no" in capsys.readouterr().err


def test_prompts_are_those_of_use(
    recipe: TrainConfig, tmp_path: Path, shared_data: Path, trained: Path
) -> None:
    """Also of a folder without a template, where the variant's system prompt comes first."""
    bare = shutil.copytree(trained / "model", tmp_path / "think")
    (bare / "chat_template.jinja").unlink()
    config = json.loads((bare / "config.json").read_text()) | {"afnext_variant": "think"}
    (bare / "config.json").write_text(json.dumps(config))
    only = stage("only", ["net"], [])
    made = dataclasses.replace(recipe, init=str(bare), stages=[only])
    journal = loop.Journal(tmp_path / "log.jsonl")
    run = loop.Run(made, tmp_path, *loop.prepare(made, shared_data, journal), journal)
    said = [afnext.Message("user", "Hello?")]
    text = run.template.render(said)
    assert text.startswith("<|im_start|>system\nYou are Audio Flamingo")
    assert text == afnext.load(bare).template.render(said)
    assert run.template.variables == run.tokenizer.special_tokens
