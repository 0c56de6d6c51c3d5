"""Recipes: the shipped ones read and fit their models, and a wrong key or value is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import afnext
from afnext.errors import AfnextError
from afnext.model import AudioLanguageModel, ModelConfig
from afnext.training import load_recipe
from afnext.training.config import mixture_of
from afnext.training.network.optimizer import parts_of

RECIPES = Path(afnext.__file__).parent / "recipes"
PAPER = {  # seconds of audio, tokens of context, what is trained
    "pretrain-1": (30, 8192, {"adaptor"}),
    "pretrain-2": (60, 8192, {"encoder", "adaptor"}),
    "midtrain-1": (600, 24_576, {"encoder", "adaptor", "decoder"}),
    "midtrain-2": (1800, 131_072, {"encoder", "adaptor", "decoder"}),
}
PARTS = {
    "encoder": "audio_tower.",
    "adaptor": "multi_modal_projector.",
    "decoder": "language_model.",
}
MINIMAL = """
name: x
stages:
  - {name: a, steps: 1, train: {".": 1e-3}, mixture: {short: 1}}
"""


@pytest.mark.parametrize("name", ["7b", "af-whisper", "nano", "nano-four", "nano-gpu", "nano-more"])
def test_the_shipped_recipes_train_what_the_paper_trains(name: str) -> None:
    recipe = load_recipe(RECIPES / name)
    with torch.device("meta"):
        net = AudioLanguageModel(ModelConfig.from_dict({"model_type": "musicflamingo"}))
    names = [n for n, _ in net.named_parameters() if "embed_positions" not in n]
    if name != "7b":
        names.append("heads.x")
    for stage in recipe.stages:
        parts = parts_of(names, stage.train, stage.freeze)
        trained = {n for pattern in stage.train for n in parts[pattern]} - {"heads.x"}
        if stage.name in PAPER:
            wanted = {n for n in names for p in PAPER[stage.name][2] if n.startswith(PARTS[p])}
            assert trained == wanted, stage.name
        assert set(mixture_of(stage, recipe.stages)) <= {
            *recipe.sources, *(recipe.synthesis.sets if recipe.synthesis else ())
        }  # fmt: skip
    if name not in ("nano-more", "nano-gpu", "af-whisper"):  # which come after and before
        assert [s.name for s in recipe.stages if s.name in PAPER] == list(PAPER)


def test_the_recipes_at_the_published_figures_have_its_limits() -> None:
    for stage in load_recipe(RECIPES / "7b").stages:
        assert (stage.audio_seconds, stage.context_tokens) == PAPER[stage.name][:2]
    last = load_recipe(RECIPES / "7b").stage("midtrain-2")
    assert last.mixture_of == {"midtrain-1": 0.5}


def test_training_and_evaluation_share_no_seed_and_no_bank() -> None:
    recipe = load_recipe(RECIPES / "nano")
    assert recipe.synthesis
    assert recipe.held_out
    assert recipe.synthesis.seed != recipe.held_out.seed
    assert (recipe.synthesis.split, recipe.held_out.split) == ("train", "held-out")


def test_a_mixture_takes_of_another_what_its_factor_says(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        MINIMAL
        + """
  - {name: b, steps: 1, train: {".": 1e-3}, mixture: {long: 3}, mixture_of: {a: 0.5}}
  - {name: c, steps: 1, train: {".": 1e-3}, mixture: {long: 1, short: 1}, mixture_of: {b: 2}}
"""
    )
    stages = load_recipe(tmp_path / "r.yaml").stages
    assert mixture_of(stages[1], stages) == {"long": 1.0, "short": 0.5}
    assert mixture_of(stages[2], stages) == {"long": 2.5, "short": 1.5}


def test_a_stage_may_be_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "chain.yaml").write_text("name: x\nstages: [a.yaml]\n")
    (tmp_path / "a.yaml").write_text("{name: a, steps: 7, train: {x: 1}, mixture: {s: 1}}")
    assert load_recipe(tmp_path).stages[0].steps == 7
    (tmp_path / "a.yaml").write_text("{name: a, steps: 7, train: {x: 1}, mixtures: {s: 1}}")
    with pytest.raises(AfnextError, match=f"^{tmp_path}/a.yaml: unknown key 'mixtures'"):
        load_recipe(tmp_path)


def test_a_chain_of_another_has_what_it_does_not_change(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{name: a, steps: 3, train: {'.': 1e-3}, mixture: {short: 1}}")
    (tmp_path / "chain.yaml").write_text("name: x\nseed: 4\nstages: [a.yaml]\n")
    below = tmp_path / "below"
    below.mkdir()
    (below / "chain.yaml").write_text(
        "of: ../chain.yaml\ndevice: cuda\nstages: [{of: ../a.yaml, steps: 9}]\n"
    )
    one, other = load_recipe(tmp_path), load_recipe(below)
    changed = dataclasses.replace(one.stages[0], steps=9)
    assert other == dataclasses.replace(one, device="cuda", stages=[changed])
    (below / "chain.yaml").write_text("of: ../chain.yaml\n")
    assert load_recipe(below) == one


def test_a_chain_and_its_stages_may_be_of_the_packages(tmp_path: Path) -> None:
    """By name, with a file's ending or without; what lies beside the recipe comes first."""
    nano = load_recipe(RECIPES / "nano")
    (tmp_path / "nano").mkdir()  # without a chain: a run's folder, say
    (tmp_path / "mine.yaml").write_text(
        "of: nano\nname: mine\nstages: [nano/midtrain-1.yaml, {of: nano/midtrain-2, steps: 50}]\n"
    )
    last = dataclasses.replace(nano.stage("midtrain-2"), steps=50)
    found = load_recipe(tmp_path / "mine.yaml")
    assert found == dataclasses.replace(nano, name="mine", stages=[nano.stage("midtrain-1"), last])
    (tmp_path / "nano" / "chain.yaml").write_text(MINIMAL)
    (tmp_path / "nano" / "midtrain-2.yaml").write_text(
        "{name: b, steps: 7, train: {'.': 1e-3}, mixture: {short: 1}}"
    )
    found = load_recipe(tmp_path / "mine.yaml")
    assert (found.seed, found.synthesis) == (0, None)
    assert [(s.name, s.steps) for s in found.stages] == [("midtrain-1", 700), ("b", 50)]


def test_the_released_models_recipe_is_run_on_data_of_ones_own(tmp_path: Path) -> None:
    """Without a change to the package's file: the folders are one's own, the stages its."""
    (tmp_path / "mine.yaml").write_text(
        "of: 7b\ninit: mine/model\nsources: {pretraining: {path: a}, skills: {path: b}, long: {path: c}}\n"
    )
    found, whole = load_recipe(tmp_path / "mine.yaml"), load_recipe(RECIPES / "7b")
    assert (found.init, [s.path for s in found.sources.values()]) == ("mine/model", ["a", "b", "c"])
    assert found.stages == whole.stages


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ("of: nanno", r": of: no chain 'nanno' is beside the recipe \({folder}/nanno\) or in the "
         "package, which has 7b, ablations, af-whisper, nano, "),
        ("stages: [{of: nano/midtrain-3}]", r": stages\[0\]: of: no stage 'nano/midtrain-3' is beside "
         r"the recipe \({folder}/nano/midtrain-3\) or in .* nano/midtrain-2, "),
        ("stages: [encoder]", r": stages\[0\]: no stage 'encoder' is beside the recipe"),
        ("of: 3", ": of: expected the name of a chain, got 3"),
        ("stages: [{of: [a]}]", r": stages\[0\]: of: expected the name of a stage, got \['a'\]"),
        ("of: mine.yaml", ": of: leads back to .*/mine.yaml"),
    ],
)  # fmt: skip
def test_another_recipe_that_is_not_there_is_told_with_file_and_key(
    tmp_path: Path, chain: str, said: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: x\n{chain}\n")
    with pytest.raises(AfnextError, match=f"^{file}{said.replace('{folder}', str(tmp_path))}"):
        load_recipe(file)


def test_sources_lie_in_the_current_folder_or_beside_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here = tmp_path / "recipes", tmp_path / "here"
    for folder in (beside, here, beside / "below"):
        folder.mkdir()
    written = "sources: {short: {path: x.json, root: wav}, far: {path: 's3://b/x.json'}}"
    (beside / "r.yaml").write_text(MINIMAL + written)
    (beside / "below" / "r.yaml").write_text("of: ../r.yaml")
    monkeypatch.chdir(here)

    def found(file: str = "r.yaml") -> tuple[str, str]:
        sources = load_recipe(beside / file).sources
        assert sources["far"].path == "s3://b/x.json"
        return sources["short"].path, sources["short"].root

    assert found() == ("x.json", "wav")  # nowhere: as it is written
    (beside / "x.json").touch()
    (beside / "wav").mkdir()
    assert found() == (f"{beside}/x.json", f"{beside}/wav")
    assert [Path(p).resolve() for p in found("below/r.yaml")] == [beside / "x.json", beside / "wav"]
    (here / "x.json").touch()
    assert found() == ("x.json", f"{beside}/wav")


@pytest.mark.parametrize(
    ("stage", "chain", "said"),
    [
        ("steps: many", "{of: a.yaml}", r"a.yaml: steps: expected int, got 'many'"),
        ("steps: many", "{of: a.yaml, steps: 1.5}", r"b.yaml: stages\[0\]: steps: .* got 1.5"),
        ("steps: 1, fries: 2", "{of: a.yaml, steps: 3}", r"a.yaml: unknown key 'fries'"),
        ("steps: 0", "{of: a.yaml, warmup: 0.1}", r"b.yaml: stages\[0\]: a: steps .* at least 1"),
        ("steps: 1", "a.yaml", r"chain.yaml: seed: expected int, got 'x'"),
    ],
)
def test_a_mistake_is_told_with_the_file_that_it_is_in(
    tmp_path: Path, stage: str, chain: str, said: str
) -> None:
    """Of a stage's file, of the chain's, or of the chain that it has its other values from."""
    (tmp_path / "a.yaml").write_text(
        f"{{name: a, {stage}, train: {{'.': 1e-3}}, mixture: {{short: 1}}}}"
    )
    (tmp_path / "chain.yaml").write_text("name: x\nseed: x\n")
    (tmp_path / "b.yaml").write_text(f"of: chain.yaml\nstages: [{chain}]\n")
    with pytest.raises(AfnextError, match=f"^{tmp_path}/{said}"):
        load_recipe(tmp_path / "b.yaml")
    (tmp_path / "chain.yaml").write_text("[1]")
    (tmp_path / "b.yaml").write_text("of: chain.yaml\n")
    with pytest.raises(AfnextError, match=f"^{tmp_path}/chain.yaml: expected a mapping"):
        load_recipe(tmp_path / "b.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: x", "nme: x"), "unknown key 'nme'"),
        (("name: x\n", ""), "missing key 'name'"),
        (("steps: 1", "steps: many"), r"stages\[0\]: steps: expected int, got 'many'"),
        (("steps: 1", "steps: true"), r"expected int, got True"),
        (("steps: 1", "steps: 0"), "a: steps must be at least 1, got 0"),
        (("steps: 1", "steps: 1, batch_tokens: 0"), "a: batch_tokens must be at least 1, got 0"),
        (("steps: 1", "steps: 1, context_tokens: 0"), "a: context_tokens must be at least 1, got 0"),
        (("steps: 1", "steps: 1, audio_seconds: -5"), "a: audio_seconds must be at least 1, got -5"),
        (("steps: 1", "steps: 1, audio_seconds: .nan"), "a: audio_seconds must .*, got nan"),
        (("steps: 1", "steps: 1, per_recording: 0"), "a: per_recording must be at least 1, got 0"),
        (("steps: 1", "steps: 1, per_recording_of: {short: 0}"), "a: per_recording_of: short must be at"),
        (("1e-3", "-1e-3"), r"a: train: . must be at least 0, got -0.001"),
        (("1e-3", ".inf"), r"a: train: . must be at least 0, got inf"),
        (("steps: 1", "steps: 1, clip: 0"), "a: clip must be above 0, got 0"),
        (("steps: 1", "steps: 1, warmup: 3"), "a: warmup must be from 0 to 1, got 3"),
        (("steps: 1", "steps: 1, flat: 1.5"), "a: flat must be from 0 to 1, got 1.5"),
        (("steps: 1", "steps: 1, final_rate: -1"), "a: final_rate must be from 0 to 1, got -1"),
        (("steps: 1", "steps: 1, weight_decay: -1"), "a: weight_decay must be at least 0, got -1"),
        (("steps: 1", "steps: 1, losses: {answer: -1}"), "losses: answer must be at least 0, got -1"),
        (("name: x", "name: x\nsave_every: -1"), "x: save_every must be at least 0, got -1"),
        (("name: x", "name: x\nsources: {s: {path: p, broken_limit: -1}}"), r"sources.s: broken_limit must"),
        (('{".": 1e-3}', "{}"), "a: train names nothing"),
        (('{".": 1e-3}', "[x]"), "train: expected dict"),
        (("steps: 1", "steps: 1, optimizer: sgd"), "optimizer: must be one of muon, adamw, got 'sgd'"),
        (("steps: 1", "steps: 1, mixture_of: {b: 1}"), "a: mixture_of: no stage is called 'b'"),
        (("steps: 1", "steps: 1, mixture_of: {a: 1}"), "mixture_of leads back to 'a'"),
        (("stages:", "stages: ["), "cannot read"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    (tmp_path / "r.yaml").write_text(MINIMAL.replace(*change))
    with pytest.raises(AfnextError, match=message) as error:
        load_recipe(tmp_path / "r.yaml")
    assert str(tmp_path / "r.yaml") in str(error.value)


def test_two_stages_of_one_name_are_refused(tmp_path: Path) -> None:
    stages = MINIMAL.split("stages:\n")[1]
    (tmp_path / "r.yaml").write_text(MINIMAL + stages)
    with pytest.raises(AfnextError, match="two stages are called 'a'"):
        load_recipe(tmp_path / "r.yaml")


def test_a_missing_recipe_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AfnextError, match="no recipe at"):
        load_recipe(tmp_path / "none.yaml")


def test_what_is_held_out_is_not_of_what_is_trained_on(tmp_path: Path) -> None:
    """Told before anything is made."""
    chain = (
        f"of: {RECIPES / 'nano' / 'chain.yaml'}\nheld_out: {{seed: 1, sentences: 9, sets: {{}}}}\n"
    )
    (tmp_path / "chain.yaml").write_text(chain)
    with pytest.raises(
        AfnextError, match="held_out: split must be held-out: the voices and sentences"
    ):
        load_recipe(tmp_path)


def test_nano_is_watched_by_all_that_it_is_trained_on() -> None:
    recipe = load_recipe(RECIPES / "nano")
    assert recipe.held_out
    for stage in recipe.stages:
        assert mixture_of(stage, recipe.stages).keys() <= recipe.held_out.sets.keys(), stage.name
