"""A run that goes on with another recipe says what changed."""

import json
from dataclasses import replace
from pathlib import Path

from afnext.training.config import TrainConfig
from afnext.training.run.checkpoints import PROGRESS
from afnext.training.run.kept_recipe import NAME, changes, keep, resume_refusal
from afnext.training.run.state import Progress


def test_changes_are_told_once_by_name(recipe: TrainConfig, tmp_path: Path) -> None:
    assert changes(recipe, tmp_path) == []
    keep(recipe, tmp_path)
    assert changes(recipe, tmp_path) == []
    stage = recipe.stages[-1]
    more = replace(stage, steps=stage.steps + 5, mixture=stage.mixture | {"new": 0.5})
    other = replace(recipe, seed=recipe.seed + 1, stages=[*recipe.stages[:-1], more])
    assert changes(other, tmp_path) == [
        f"the recipe changed: seed was {recipe.seed}, is {recipe.seed + 1}",
        f"the recipe changed: stages.{stage.name}.mixture.new was not there, is 0.5",
        f"the recipe changed: stages.{stage.name}.steps was {stage.steps}, is {stage.steps + 5}",
    ]
    keep(other, tmp_path)
    assert changes(other, tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_a_run_goes_on_only_by_a_recipe_that_has_the_steps_that_were_taken(
    recipe: TrainConfig, tmp_path: Path
) -> None:
    """``ears`` has ended after 4 steps, ``letters`` stands at 3."""
    assert resume_refusal(recipe, tmp_path) == ""
    keep(recipe, tmp_path)
    path = tmp_path / "checkpoints" / "01-0000003" / PROGRESS
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(Progress(1, 3).to_dict()))

    def refused(**steps: int) -> str:
        stages = [replace(s, steps=steps.get(s.name, s.steps)) for s in recipe.stages]
        return resume_refusal(replace(recipe, stages=stages), tmp_path)

    assert refused() == refused(letters=3) == refused(letters=9) == refused(all=1) == ""
    assert refused(ears=9) == (
        f"{tmp_path}: ears has ended after 4 steps and cannot go on to 9: begin another run, "
        f"with init: {tmp_path}/model"
    )
    said = "steps are taken already, steps is now"
    assert refused(ears=2) == f"{tmp_path}: ears: 4 {said} 2"
    assert refused(letters=2) == f"{tmp_path}: letters: 3 {said} 2"
    path.write_text("{}")
    assert "cannot resume from" in refused()
