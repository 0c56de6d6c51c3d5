"""From timings to a result: rates, shares of the machine's peaks, and the JSON that keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .case import LIMIT, Case
from .timing import Timing

SCHEMA = 1


@dataclass(frozen=True)
class Peaks:
    """The machine's limits: bytes a second from memory, and operations a second by dtype."""

    memory: float
    compute: dict[str, float]


@dataclass(frozen=True)
class Contestant:
    """One contestant's figures in a case. Rates are 0 where the case does not count that resource.

    Attributes:
        name: who.
        ours: whether it is ours.
        seconds: median and quartiles of a call.
        ratio: its median over ours: 2 is twice as slow.
        flops_per_second, bytes_per_second: achieved.
        compute_share, memory_share: of the machine's peaks.
    """

    name: str
    ours: bool
    seconds: Timing
    ratio: float
    flops_per_second: float
    bytes_per_second: float
    compute_share: float
    memory_share: float


@dataclass(frozen=True)
class Result:
    """A case with everyone's figures.

    Attributes:
        limit_seconds: what the call would take at the machine's peaks, the larger of the time for its
            operations and the time for its bytes; 0 where it counts neither.
        bound: ``"compute"`` or ``"memory"``, whichever sets that limit, or ``""``.
        targets: as of the case.
        misses: each target that was missed, in words.
    """

    benchmark: str
    name: str
    dtype: str
    flops: float
    bytes: float
    limit_seconds: float
    bound: str
    contestants: list[Contestant]
    targets: dict[str, float] = field(default_factory=dict)
    misses: list[str] = field(default_factory=list)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Result:
        """What ``asdict`` made plain."""
        contestants = [
            Contestant(**{**c, "seconds": Timing(**c["seconds"])}) for c in plain["contestants"]
        ]
        return cls(**{**plain, "contestants": contestants})

    @property
    def ours(self) -> Contestant:
        """Our own figures."""
        return self.contestants[0]

    @property
    def best_peer(self) -> Contestant | None:
        """The fastest of the others."""
        return min(self.contestants[1:], key=lambda c: c.seconds.median, default=None)

    @property
    def share(self) -> float:
        """Of the machine's limit that ours reaches; 0 where nothing is counted."""
        return self.limit_seconds / self.ours.seconds.median


@dataclass(frozen=True)
class Failure:
    """A case without figures, or a whole benchmark (``name`` is empty then).

    Attributes:
        error: one line: what differed and by how much, or what went wrong.
    """

    benchmark: str
    name: str
    error: str

    @classmethod
    def of(cls, benchmark: str, name: str, error: Exception) -> Failure:
        """From what a check or a call raised: a check's own words need no name of an exception."""
        words = " ".join(str(error).split()) or "no reason given"
        if not isinstance(error, AssertionError):
            words = f"{type(error).__name__}: {words}"
        return cls(benchmark, name, words)

    def __str__(self) -> str:
        return ": ".join(filter(None, (self.benchmark, self.name, self.error)))


@dataclass(frozen=True)
class Table:
    """Figures that are no timings of contestants.

    Attributes:
        rows: figures by the name of their row and of their column.
        formats: how a column is printed, by default ``".3g"``.
    """

    benchmark: str
    name: str
    rows: Mapping[str, Mapping[str, float]]
    formats: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        columns = list(next(iter(self.rows.values()), {}))
        cells = [["", *columns]]
        for name, row in self.rows.items():
            cells.append([name, *(format(row[c], self.formats.get(c, ".3g")) for c in columns)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = (
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in cells
        )
        return "\n".join([f" {self.name}", *(f"  {line}" for line in lines)])


def result_of(benchmark: str, case: Case, timings: dict[str, Timing], peaks: Peaks) -> Result:
    """Rates and shares of one case; the first timing is ours."""
    peak = peaks.compute.get(case.dtype, 0.0)
    compute_seconds = case.flops / peak if peak else 0.0
    memory_seconds = case.moved / peaks.memory if peaks.memory else 0.0
    limit = max(compute_seconds, memory_seconds)
    bound = "" if limit == 0 else "compute" if compute_seconds > memory_seconds else "memory"
    ours = next(iter(timings.values())).median
    contestants = [
        Contestant(
            name=name,
            ours=index == 0,
            seconds=timing,
            ratio=timing.median / ours,
            flops_per_second=case.flops / timing.median,
            bytes_per_second=case.moved / timing.median,
            compute_share=compute_seconds / timing.median,
            memory_share=memory_seconds / timing.median,
        )
        for index, (name, timing) in enumerate(timings.items())
    ]
    return Result(
        benchmark, case.name, case.dtype, case.flops, case.moved, limit, bound, contestants,
        dict(case.targets), _misses(case, contestants, limit / ours),
    )  # fmt: skip


def _misses(case: Case, contestants: Iterable[Contestant], share: float) -> list[str]:
    ratios = {c.name: c.ratio for c in contestants if not c.ours}
    missed = []
    for name, least in case.targets.items():
        if name == LIMIT:
            if share < least:
                missed.append(f"{share:.0%} of the limit, not {least:.0%}")
        elif name in ratios and ratios[name] < least:  # a peer may not be installed
            missed.append(f"x{ratios[name]:.3g} of {name}, not x{least:g}")
    return missed


def document(
    machine: dict[str, Any],
    peaks: Peaks,
    results: Iterable[Result],
    failures: Iterable[Failure] = (),
    tables: Iterable[Table] = (),
    complete: bool = True,
) -> dict[str, Any]:
    """What ``--json`` writes: ``schema``, ``machine``, ``peaks`` and ``results``, SI units throughout.

    ``complete`` is false as long as more results are to come: for good where the run was interrupted.
    """
    return {
        "schema": SCHEMA,
        "machine": machine,
        "peaks": {
            "memory_bytes_per_second": peaks.memory,
            "compute_operations_per_second": peaks.compute,
        },
        "results": [_rounded(asdict(result)) for result in results],
        "tables": [
            {"benchmark": t.benchmark, "name": t.name, "rows": _rounded(t.rows)} for t in tables
        ],
        "failures": [asdict(failure) for failure in failures],
        "complete": complete,
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """One JSON document, readable in a diff; an older one stays whole until it is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    part.replace(path)


def table(result: Result) -> str:
    """A heading with the case's limit, then one line a contestant."""
    heading = f" {result.name}"
    if result.bound:
        heading += f"   limit {duration(result.limit_seconds)} ({result.bound})"
    lines = [heading, *map(_row, result.contestants)]
    if result.targets:
        goals = (f"{n} {t:.0%}" if n == LIMIT else f"{n} x{t:g}" for n, t in result.targets.items())
        outcome = f"MISSED: {'; '.join(result.misses)}" if result.misses else "met"
        lines.append(f"  target: {', '.join(goals)}: {outcome}")
    return "\n".join(lines)


def _row(who: Contestant) -> str:
    seconds = who.seconds
    spread = f"{duration(seconds.median)} ({duration(seconds.low)} to {duration(seconds.high)})"
    cells = [f"  {who.name:32} {spread:38}", "      " if who.ours else f"x{who.ratio:<5.3g}"]
    if who.bytes_per_second:
        cells.append(_rate(who.bytes_per_second, "GB/s", who.memory_share))
    if who.flops_per_second:
        cells.append(_rate(who.flops_per_second, "GFLOP/s", who.compute_share))
    return " ".join(cells).rstrip()


def _rate(value: float, unit: str, share: float) -> str:
    scaled = value / 1e9
    if unit == "GFLOP/s" and scaled >= 1000:
        scaled, unit = scaled / 1000, "TFLOP/s"
    return f"{scaled:6.3g} {unit} {f'({share:.0%})':6}"


def duration(seconds: float) -> str:
    """Three significant digits, in µs, ms or s."""
    scale, unit = (1e6, "µs") if seconds < 1e-3 else (1e3, "ms") if seconds < 1 else (1.0, "s")
    return f"{_digits(seconds * scale)} {unit}"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _rounded(value: Any) -> Any:
    """Six significant digits: more than a measurement holds."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
