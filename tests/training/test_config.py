"""Recipes: the shipped one reads, and a wrong key or value is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

import afnext
from afnext.errors import AfnextError
from afnext.training import load_recipe

NANO = Path(afnext.__file__).parent / "recipes" / "nano.yaml"
MINIMAL = """
name: x
data: {seed: 1, clips: {2: 3}}
held_out: {seed: 2, clips: {2.5: 3}}
stages:
  - {name: a, steps: 1, trainable: ".", mix: [{until: 1.0, shares: {"2-4": 1}}]}
"""


def test_the_shipped_recipe_reads() -> None:
    recipe = load_recipe(NANO)
    assert recipe.name == "nano"
    assert [s.name for s in recipe.stages] == ["encoder", "language", "joint", "focus", "clock"]
    assert recipe.data.seed != recipe.held_out.seed
    for stage in recipe.stages:
        assert stage.mix[-1].until == 1.0
        for phase in stage.mix:
            assert sum(phase.shares.values()) == pytest.approx(1)


def test_values_are_converted(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(MINIMAL)
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.data.clips == {2.0: 3}
    assert recipe.stages[0].mix[0].shares == {"2-4": 1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: x", "nme: x"), "unknown key 'nme'"),
        (("name: x\n", ""), "missing key 'name'"),
        (("steps: 1", "steps: many"), r"stages\[0\]: steps: expected int, got 'many'"),
        (("steps: 1", "steps: true"), r"expected int, got True"),
        (("seed: 1", "sed: 1"), "data: unknown key 'sed'"),
        (("{2: 3}", "[2, 3]"), "clips: expected"),
        (("stages:", "stages: ["), "cannot read"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    (tmp_path / "r.yaml").write_text(MINIMAL.replace(*change))
    with pytest.raises(AfnextError, match=message):
        load_recipe(tmp_path / "r.yaml")


def test_a_missing_recipe_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AfnextError, match="no recipe at"):
        load_recipe(tmp_path / "none.yaml")
