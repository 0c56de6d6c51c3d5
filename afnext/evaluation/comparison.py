"""Variants of a recipe compared over seeds: means with their intervals, as a table and as a picture.

A variant is held against the base seed by seed: both begin with the same random numbers, so that what a seed
brings to both is not in their difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from afnext.evaluation.card import NAMES, SECONDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BASE = "base"
QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t with 1 to 9 degrees of freedom."""
MOST_SEEDS = len(QUANTILES) + 1
COLOURS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a")

Figures = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Of one run, by kind of question and measure, as :func:`afnext.evaluation.suite.scored` gives them."""
Runs = Mapping[str, Mapping[int, Figures]]
"""By variant and seed."""


@dataclass(frozen=True, slots=True)
class Row:
    """A measure of a kind of question about recordings of a ``length``; "" where all have the same."""

    kind: str
    measure: str
    length: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind.removesuffix(' (all)')}, {NAMES.get(self.measure, self.measure)}"

    @property
    def _kind(self) -> str:
        return f"{self.kind}, {self.length}".removesuffix(", ")

    def is_in(self, figures: Figures) -> bool:
        return self.measure in figures.get(self._kind, {})

    def of(self, figures: Figures) -> float:
        return float(figures[self._kind][self.measure]["value"])


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean, and ``half`` the width of its 95 % interval by Student's t; infinite for one value."""

    mean: float
    half: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.mean) > self.half


def estimate(values: Sequence[float]) -> Estimate:
    """Of 1 to ``MOST_SEEDS`` values."""
    if len(values) == 1:
        return Estimate(values[0], math.inf)
    quantile = QUANTILES[len(values) - 2]
    return Estimate(fmean(values), quantile * stdev(values) / math.sqrt(len(values)))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant's figure in a row, and the mean of its differences from the base, if there are any."""

    row: Row
    variant: str
    value: Estimate
    difference: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON; an interval that one seed leaves open is None."""
        found: dict[str, Any] = {
            "kind": self.row.kind, "measure": self.row.measure, "length": self.row.length,
            "variant": self.variant,
        }  # fmt: skip
        for name, part in (("value", self.value), ("difference", self.difference)):
            if part is not None:
                half = round(part.half, 4) if math.isfinite(part.half) else None
                found[name] = {"mean": round(part.mean, 4), "half": half}
        return found


def compare(runs: Runs, rows: Sequence[Row]) -> Iterator[Comparison]:
    """Every variant in every row; a row that a run has nothing of is left out."""
    base = runs.get(BASE, {})
    every = [figures for seeds in runs.values() for figures in seeds.values()]
    for row in (row for row in rows if all(map(row.is_in, every))):
        for variant, seeds in runs.items():
            values = {seed: row.of(figures) for seed, figures in seeds.items()}
            both = [] if variant == BASE else [seed for seed in values if seed in base]
            gained = [values[seed] - row.of(base[seed]) for seed in both]
            yield Comparison(
                row, variant, estimate(list(values.values())), estimate(gained) if gained else None
            )


def table(compared: Sequence[Comparison], titles: Mapping[str, str]) -> str:
    """Markdown: a line for each row, a column for each variant by its title."""
    variants = list(dict.fromkeys(c.variant for c in compared))
    cells = {(c.row, c.variant): _cell(c) for c in compared}
    lines = [
        f"| asked | recordings | {' | '.join(titles[v] for v in variants)} |",
        f"|---|---|{'---|' * len(variants)}",
    ]
    for row in dict.fromkeys(c.row for c in compared):
        own = " | ".join(cells[row, variant] for variant in variants)
        lines.append(f"| {row.name} | {row.length} | {own} |")
    return "\n".join([*lines, ""])


def _cell(of: Comparison) -> str:
    value = _text(of.row, of.value, "")
    if of.difference is None:
        return value
    difference = _text(of.row, of.difference, "+")
    return f"{value} (**{difference}**)" if of.difference.clear else f"{value} ({difference})"


def _text(row: Row, of: Estimate, sign: str) -> str:
    """Shares in percent, times in seconds."""
    places, unit = (2, 1.0) if row.measure in SECONDS else (1, 100.0)
    mean = round(of.mean * unit, places) + 0.0  # no negative zero
    text = f"{mean:{sign}.{places}f}"
    if math.isfinite(of.half):
        text += f" ± {of.half * unit:.{places}f}"
    return text + (" s" if row.measure in SECONDS else "")


def figure(compared: Sequence[Comparison], titles: Mapping[str, str]) -> Figure:
    """Differences from the base with their intervals: a panel for each kind of question and measure, a line
    for each variant, a colour for each length.
    """
    from matplotlib.figure import Figure

    apart = [c for c in compared if c.difference is not None]
    if not apart:
        return Figure()
    panels = list(dict.fromkeys(c.row.name for c in apart))
    variants = list(dict.fromkeys(c.variant for c in apart))
    lengths = list(dict.fromkeys(c.row.length for c in apart))
    drawn = Figure(
        figsize=(1.5 + 2.5 * len(panels), 1.2 + 0.6 * len(variants)), layout="constrained"
    )
    every = drawn.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(every, panels, strict=True):
        axes.axvline(0.0, color="#bbbbbb", linewidth=0.8, zorder=0)
        seconds = False
        for place, length in enumerate(lengths):
            own = [c for c in apart if (c.row.name, c.row.length) == (panel, length)]
            seconds = any(c.row.measure in SECONDS for c in own) or seconds
            unit = 1.0 if seconds else 100.0
            shift = 0.16 * (place - (len(lengths) - 1) / 2)
            estimates = [c.difference for c in own if c.difference is not None]
            axes.errorbar(
                [e.mean * unit for e in estimates],
                [variants.index(c.variant) + shift for c in own],
                xerr=[e.half * unit if math.isfinite(e.half) else 0.0 for e in estimates],
                fmt="o", markersize=3, linewidth=1, label=length, color=COLOURS[place % len(COLOURS)],
            )  # fmt: skip
        axes.set(title=panel, xlabel="difference, s" if seconds else "difference, points")
        axes.title.set_size(9)
        axes.set_yticks(range(len(variants)), [titles[v] for v in variants])
        axes.set_ylim(len(variants) - 0.5, -0.5)
    drawn.legend(
        *every[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(lengths)
    )
    return drawn


def draw(compared: Sequence[Comparison], titles: Mapping[str, str], path: Path) -> None:
    """:func:`figure` as an SVG; the same figures make the same file."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": path.name, "svg.fonttype": "none"}):
        figure(compared, titles).savefig(path, format="svg", metadata={"Date": None})
