"""``python -m afnext.evaluation.ablations OUT``: what the design choices buy.

Variants of a short recipe (``afnext/recipes/ablations``) are trained with several seeds, asked about sounds
in recordings of four lengths, the longest longer than any trained on, and held against the recipe as it is. A
run is a folder ``OUT/VARIANT/SEED``; one that has its ``scores.json`` is finished, any other goes on where it
was. At the end stand ``OUT/ablations.json``, ``.md`` and ``.svg``, of all runs that are finished.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from afnext.errors import AfnextError
from afnext.evaluation import questions as q
from afnext.evaluation.comparison import BASE, MOST_SEEDS, Row, compare, draw, table
from afnext.evaluation.generate import Listener
from afnext.evaluation.held_out import Group, HeldOut, write
from afnext.evaluation.questions import Asker, Question
from afnext.evaluation.score import Answered
from afnext.evaluation.suite import answer, scored
from afnext.training.config import StageConfig, TrainConfig, mixture_of
from afnext.training.data.prepare import prepare
from afnext.training.data.sources import Source
from afnext.training.loop import Run
from afnext.training.recipe import load_recipe
from afnext.training.run.kept_recipe import NAME, changes, keep
from afnext.training.run.monitor import Journal
from afnext.training.synthesis.banks import Banks
from afnext.training.synthesis.dataset import SceneSet
from afnext.training.tasks.exchange import Plainly

RECIPE = Path(__file__).parent.parent / "recipes" / "ablations"
AT_ONCE = "at-once"

LENGTHS: dict[str, SceneSet] = {
    "2 to 10 s": SceneSet("sounds", 60, 2.0, 10.0),
    "12 to 30 s": SceneSet("sounds", 40, 12.0, 30.0),
    "30 to 60 s": SceneSet("sounds", 24, 30.0, 60.0),
    "60 to 120 s": SceneSet("sounds", 16, 60.0, 120.0),
}
"""What is asked about: one window, two as trained on, three and four."""
MEASURES = (
    ("events", "f1"), ("events", "onset error"), ("when", "right"), ("at", "right"),
    ("order (all)", "right"), ("counting (all)", "right"),
)  # fmt: skip
ROWS = [Row(kind, measure, length) for kind, measure in MEASURES for length in LENGTHS]


@dataclass(frozen=True, slots=True)
class Variant:
    """A recipe that differs from the base in one choice; ``title`` names it in the table."""

    title: str
    change: Callable[[TrainConfig], TrainConfig]


def rote(kind: Literal["axial", "time", "none"]) -> Callable[[TrainConfig], TrainConfig]:
    """Rotary time embedding of another kind."""
    return lambda config: replace(config, model=replace(config.model, rote=kind))


def no_clock(config: TrainConfig) -> TrainConfig:
    """Without the objective that audio is near the token of its time."""
    stages = [replace(s, losses=replace(s.losses, clock=0.0)) for s in config.stages]
    return replace(config, stages=stages)


def digits(config: TrainConfig) -> TrainConfig:
    """Times in digits, without tokens of their own, so that there is nothing for a clock to be near."""
    config = no_clock(config)
    return replace(config, model=replace(config.model, times="digits"))


def direct(config: TrainConfig) -> TrainConfig:
    """Numbers are answered at once, not after what is counted."""
    return replace(config, stages=[replace(stage, answers="direct") for stage in config.stages])


def at_once(config: TrainConfig) -> TrainConfig:
    """One stage instead of all: as the last one, which trains everything, but from random weights, on all
    their tokens, each part with the highest learning rate that it has in any.
    """
    last = config.stages[-1]
    mixture: dict[str, float] = {}
    for stage in config.stages:
        shares = mixture_of(stage, config.stages)
        for name, share in shares.items():
            part = _tokens(stage) * share / sum(shares.values())
            mixture[name] = mixture.get(name, 0.0) + part
    total = sum(map(_tokens, config.stages))
    only = replace(
        last,
        name=AT_ONCE,
        steps=round(total / (last.batch_tokens * last.accumulate)),
        mixture={name: part / total for name, part in mixture.items()},
        mixture_of={},
        train={
            part: max(rate, *(stage.train.get(part, 0.0) for stage in config.stages))
            for part, rate in last.train.items()
        },
        audio_seconds=max(stage.audio_seconds for stage in config.stages),
        context_tokens=max(stage.context_tokens for stage in config.stages),
    )
    return replace(config, stages=[only])


def _tokens(stage: StageConfig) -> int:
    return stage.steps * stage.batch_tokens * stage.accumulate


VARIANTS: dict[str, Variant] = {
    BASE: Variant("base", lambda config: config),
    "rote-time": Variant("RoTE time", rote("time")),
    "rote-none": Variant("no RoTE", rote("none")),
    AT_ONCE: Variant("all at once", at_once),
    "no-clock": Variant("no clock", no_clock),
    "digits": Variant("digits, no clock", digits),
    "direct": Variant("counts direct", direct),
}


@dataclass
class Study:
    """All runs below a folder.

    Args:
        base: the recipe that variants change.
        out: the folder.
        data: for training sets, kept between studies; by default ``out/data``.
        lengths: what is asked about, by a name.

    Raises:
        AfnextError: ``out`` holds runs of another recipe.
    """

    base: TrainConfig
    out: Path
    data: Path | None = None
    lengths: Mapping[str, SceneSet] = dataclasses.field(default_factory=lambda: LENGTHS)

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        if changes(self.base, self.out):
            raise AfnextError(f"{self.out} holds runs of another recipe; choose another folder")
        keep(self.base, self.out)
        self.recordings = HeldOut(self.out / "recordings")
        self._sources: Mapping[str, Source] = {}

    def config(self, variant: str, seed: int) -> TrainConfig:
        """The recipe of a run."""
        return VARIANTS[variant].change(replace(self.base, seed=self.base.seed + seed))

    def run(self, variant: str, seed: int) -> None:
        """Train, if it is not yet finished, and score; a run that was broken off goes on."""
        folder = self._folder(variant, seed)
        if (folder / "scores.json").exists():
            return
        config = self.config(variant, seed)
        journal = Journal(self._new(folder) / "log.jsonl")
        try:
            run = Run(config, folder, self.sources(journal), {}, journal)
            model = run.train()
            figures = self.score(model)
        finally:
            journal.close()
        scores = {"variant": variant, "seed": config.seed, "figures": figures,
                  "minutes": round(run.progress.seconds / 60, 2)}  # fmt: skip
        (folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
        shutil.rmtree(run.checkpoints.folder)

    def sources(self, journal: Journal) -> Mapping[str, Source]:
        """The training sets, made and indexed once for all runs."""
        if not self._sources:
            self._sources, _ = prepare(self.base, self.data or self.out / "data", journal)
        return self._sources

    def score(self, model: Path) -> dict[str, dict[str, dict[str, Any]]]:
        """A model's figures, by kind of question with the length, and by measure."""
        asked = list(self.questions())
        answers = answer(Listener(model, self.recordings.windows), asked)
        return scored([Answered(a.kind, a.family, a.sounds[0], answers[a], a.judge) for a in asked])

    def questions(self) -> Iterator[Question]:
        """The same for every run, about recordings that no training set has."""
        groups = {name: Group(scenes) for name, scenes in self.lengths.items()}
        no_banks = Banks(self.recordings.folder)  # sounds need none
        for _ in write(self.recordings.folder, {"held-out": no_banks}, groups):
            pass
        for length in groups:
            for key, scene in self.recordings.scenes(length):
                yield from q.about_sounds(Asker(key, scene, Plainly(key), f", {length}"))

    def finished(self) -> dict[str, dict[int, dict[str, Any]]]:
        """Scores of the runs that have them, by variant and seed."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for variant in VARIANTS:
            for path in sorted((self.out / variant).glob("*/scores.json")):
                scores = json.loads(path.read_text())
                found.setdefault(variant, {})[scores["seed"]] = scores
        return found

    def report(self) -> str:
        """Write what the finished runs come to; returns it as Markdown."""
        finished = self.finished()
        runs = {v: {s: r["figures"] for s, r in seeds.items()} for v, seeds in finished.items()}
        minutes = {v: [r["minutes"] for r in seeds.values()] for v, seeds in finished.items()}
        rows = [row for row in ROWS if row.length in self.lengths]
        compared = list(compare(runs, rows))
        titles = {name: variant.title for name, variant in VARIANTS.items()}
        text = "\n".join([describe(minutes), table(compared, titles)])
        found = {
            "minutes": minutes,
            "seeds": {variant: list(seeds) for variant, seeds in runs.items()},
            "compared": [c.to_dict() for c in compared],
        }
        (self.out / "ablations.json").write_text(json.dumps(found, indent=1) + "\n")
        (self.out / "ablations.md").write_text(text)
        draw(compared, titles, self.out / "ablations.svg")
        return text

    def _folder(self, variant: str, seed: int) -> Path:
        return self.out / variant / str(seed)

    @staticmethod
    def _new(folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def describe(minutes: Mapping[str, Sequence[float]]) -> str:
    """What the table shows, and how long each variant was trained."""
    spent = (
        f"{VARIANTS[variant].title}: {sum(own) / len(own):.1f} ({len(own)})"
        for variant, own in minutes.items()
    )
    return (
        "Base: RoTE axial, trained in stages, times as tokens, counts after a list. The clock objective "
        "draws audio to the token of its time; digits leave it none. Means over seeds with 95 % intervals "
        "(Student's t), shares in percent; in brackets the mean difference from the base, "
        "seed by seed, bold where its interval leaves out 0. Minutes of training (and seeds): "
        f"{', '.join(spent)}.\n"
    )


def main(arguments: list[str] | None = None) -> None:
    """Train and score variants of a short recipe; print how they compare."""
    parser = argparse.ArgumentParser(
        prog="python -m afnext.evaluation.ablations", description=main.__doc__
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of the runs")
    parser.add_argument("--data", type=Path, help="folder for training sets, kept between studies")
    parser.add_argument("--seeds", type=int, default=3, help=f"1 to {MOST_SEEDS}; by default 3")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--resume", action="store_true", help="keep what is finished, go on")
    options = parser.parse_args(arguments)
    if not 1 <= options.seeds <= MOST_SEEDS:
        parser.error(f"--seeds must be 1 to {MOST_SEEDS}")
    if (options.out / NAME).exists() and not options.resume:
        parser.error(f"{options.out} holds runs already; resume them or choose another folder")
    try:
        study = Study(load_recipe(RECIPE), options.out, options.data)
        for seed in range(options.seeds):
            for variant in options.only:
                study.run(variant, seed)
        print(study.report())
    except AfnextError as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main()
