"""What training 7B takes on 128 H100s, planned: memory of a device, operations, time of a step, days.

Nothing is measured: the figures are those of ``afnext plan 7b --processes 128``. That plans hold is tested on
nano (``tests/training/test_planner.py``), whose peaks they meet within 10 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from afnext.training.planner import Resources, StagePlan, plan
from afnext.training.recipe import load_recipe

from .results import Table

PROCESSES = 128
FORMATS = {"trained": ",.0f", "frozen": ",.0f", "tokens": ",.0f", "attention": ".0%"}


def outcomes(quick: bool) -> Iterator[Table]:
    """Every stage; the quick look is as long."""
    chain = load_recipe(Path(str(files("afnext") / "recipes" / "7b")))
    resources = Resources(PROCESSES)
    plans = plan(chain, resources)
    name = f"7B, {PROCESSES} H100s at {resources.utilisation:.0%} of their peak"
    rows = {p.stage.name: {f"{k}, GB": v / 1e9 for k, v in memory(p).items()} for p in plans}
    yield Table("training_plan", f"{name}: memory of a device", rows)
    yield Table("training_plan", f"{name}: a step", {p.stage.name: step(p) for p in plans}, FORMATS)


def memory(found: StagePlan) -> dict[str, float]:
    """Bytes by part, and together."""
    return {**found.memory, "together": found.total}


def step(found: StagePlan) -> dict[str, float]:
    """Counts, sizes and times of a step."""
    trained = sum(count for count, rate in found.counts.values() if rate is not None)
    return {
        "trained": trained,
        "frozen": sum(count for count, _ in found.counts.values()) - trained,
        "tokens": found.tokens,
        "hours of audio": found.audio_seconds / 3600,
        "operations": found.flops,
        "attention": found.attention,
        "seconds": sum(found.seconds.values()),
        "days": found.days,
    }
