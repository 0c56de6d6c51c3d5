"""Recipes: chains of stages in YAML, read into the dataclasses of :mod:`afnext.training.config`.

A chain is a file that names its stages; each stage is a file of its own beside it. Keys that are unknown or
ill-typed are refused. Those of the embedded model are in ``afnext/recipes/nano``, those at the published
figures in ``afnext/recipes/7b``; what is not beside a recipe is looked for among them.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import yaml

from afnext.errors import AfnextError
from afnext.training.config import RecipeError, SourceConfig, StageConfig, TrainConfig
from afnext.training.data.store import is_remote

RECIPES = Path(__file__).parents[1] / "recipes"
"""The package's own: a folder each, with a ``chain.yaml`` and stages."""


def load_recipe(path: str | Path) -> TrainConfig:
    """Read a chain: a YAML file, or a folder with its ``chain.yaml``. A stage may be a mapping or the name of
    a YAML file; a mapping with ``of`` is that file's stage with other values for the keys that it names.
    ``of`` on the chain itself is another chain, whose keys it has where it has none of its own. Names are
    looked up beside the file that has them, then in the package: ``nano`` is its chain, ``nano/midtrain-2``
    one of its stages. Relative paths of sources are looked up from the current folder, then beside the file
    that has them.

    Raises:
        AfnextError: naming the file and the key at fault.
    """
    path = recipe_file(path)
    values, files = _chain(path)
    recipe: TrainConfig = _build(TrainConfig, values, str(path), files)
    folder = Path(files.get("sources", path)).parent
    return dataclasses.replace(
        recipe, sources={name: _placed(source, folder) for name, source in recipe.sources.items()}
    )


@contextmanager
def told_of(recipe: str | Path | TrainConfig) -> Iterator[None]:
    """What is wrong with a recipe, wherever it is found, is told with its file."""
    try:
        yield
    except RecipeError as error:
        if isinstance(recipe, TrainConfig):
            raise
        raise RecipeError(f"{recipe_file(recipe)}: {error}") from None


def _placed(source: SourceConfig, folder: Path) -> SourceConfig:
    """With paths that are not there from the current folder, and are from the recipe's, as found there."""

    def placed(path: str) -> str:
        there = not path or is_remote(path) or Path(path).exists()
        return path if there or not (folder / path).exists() else str(folder / path)

    return dataclasses.replace(source, path=placed(source.path), root=placed(source.root))


def recipe_file(path: str | Path) -> Path:
    """The chain's file: of a folder its ``chain.yaml``."""
    path = Path(path)
    return path / "chain.yaml" if path.is_dir() else path


def _chain(path: Path, below: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, str]]:
    """A chain's values, its stages in place of their files' names; and the file that each value is from."""
    values = _read(path)
    before: dict[str, Any] = {}
    files: dict[str, str] = {}
    if "of" in values:
        of = _found(path, values.pop("of"), f"{path}: of", "chain")
        if of.resolve() in (known := (*below, path.resolve())):
            raise AfnextError(f"{path}: of: leads back to {of}")
        before, files = _chain(of, known)
    if isinstance(values.get("stages"), list):
        values["stages"] = [
            _stage(path, stage, f"{path}: stages[{i}]") for i, stage in enumerate(values["stages"])
        ]
    return before | values, files | dict.fromkeys(values, str(path))


def _stage(chain: Path, stage: Any, where: str) -> Any:
    """A stage of a file of its own, or of one with other values; a mapping as it is."""
    if isinstance(stage, str):
        file = _found(chain, stage, where, "stage")
        return _build(StageConfig, _read(file), str(file))
    if isinstance(stage, dict) and "of" in stage:
        file = _found(chain, stage["of"], f"{where}: of", "stage")
        changes = {key: value for key, value in stage.items() if key != "of"}
        values = _read(file)
        kept = dict.fromkeys(values.keys() - changes.keys(), str(file))
        return _build(StageConfig, values | changes, where, kept)
    return stage


def _found(recipe: Path, name: Any, where: str, kind: Literal["chain", "stage"]) -> Path:
    """The file of another chain or stage, beside a recipe or in the package.

    Raises:
        AfnextError: there is none; ``where`` begins the message.
    """
    if not isinstance(name, str):
        raise AfnextError(f"{where}: expected the name of a {kind}, got {name!r}")
    beside, ours = recipe.parent / name, RECIPES / name
    if kind == "chain":
        looked = [beside, beside / "chain.yaml", ours / "chain.yaml"]
        known = sorted(path.parent.name for path in RECIPES.glob("*/chain.yaml"))
    else:
        looked = [beside, Path(f"{beside}.yaml"), ours, Path(f"{ours}.yaml")]
        stages = (path for path in RECIPES.glob("*/*.yaml") if path.stem != "chain")
        known = sorted(f"{path.parent.name}/{path.stem}" for path in stages)
    if found := next((path for path in looked if path.is_file()), None):
        return found
    raise AfnextError(
        f"{where}: no {kind} {name!r} is beside the recipe ({beside}) or in the package, which has "
        f"{', '.join(known)}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AfnextError(f"no recipe at {path}") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise AfnextError(f"cannot read the recipe {path}{line}: {error.problem}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AfnextError(f"cannot read the recipe {path}: {error}") from None
    if not isinstance(values, dict):
        raise AfnextError(f"{path}: expected a mapping, got {values!r}")
    return values


def _build(kind: type, values: Any, where: str, files: Mapping[str, str] | None = None) -> Any:
    """An object of ``kind``. ``where`` begins messages; those about a key that is from elsewhere begin with
    its file.
    """
    if not isinstance(values, dict):
        raise AfnextError(f"{where}: expected a mapping, got {values!r}")
    files, hints = files or {}, typing.get_type_hints(kind)
    if unknown := [key for key in values if key not in hints]:
        at = files.get(unknown[0], where)
        raise AfnextError(f"{at}: unknown key {unknown[0]!r}; known: {', '.join(hints)}")
    required = [
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing := [name for name in required if name not in values]:
        raise AfnextError(f"{where}: missing key {missing[0]!r}")
    converted = {k: _convert(hints[k], v, f"{files.get(k, where)}: {k}") for k, v in values.items()}
    try:
        return kind(**converted)
    except ValueError as error:
        raise AfnextError(f"{where}: {error}") from None


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if isinstance(value, typing.cast(type, kind)):  # of a file of its own
            return value
        return _build(typing.cast(type, kind), value, where)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _convert(args[0], value, where)
    if origin is Literal:
        if value in args:
            return value
        raise AfnextError(f"{where}: must be one of {', '.join(map(str, args))}, got {value!r}")
    if origin is list and isinstance(value, list):
        return [_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {
            _convert(args[0], k, where): _convert(args[1], v, f"{where}.{k}")
            for k, v in value.items()
        }
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError):  # YAML 1.1 takes 1e-3 for a text
            return float(value)
    if type(value) is kind:
        return value
    raise AfnextError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}")
