"""A run that goes on with another recipe says what changed."""

from dataclasses import replace
from pathlib import Path

from afnext.training.config import TrainConfig
from afnext.training.run.kept_recipe import NAME, changes, keep


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
