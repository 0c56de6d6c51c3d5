"""``python -m benchmarks`` and ``afnext bench``: which benchmarks, and where their results go."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import machine, roofline
from .results import Failure, Result, Table, document, table, write
from .run import FOLDER, benchmarks, peaks_of, run

SAVED = FOLDER / "results"
GPU = "gpu"
INTERRUPTED = 130  # as shells say it


def main(arguments: Sequence[str] | None = None, prog: str = "python -m benchmarks") -> int:
    """Exit code: 2 is misuse, 1 is a failure of any case, 130 an interrupt."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == [GPU]:  # it has options of its own, and may have to build the module first
        from .gpu.__main__ import main as gpu

        return gpu(arguments[1:])
    known = benchmarks()
    options = _parser(prog).parse_args(arguments)
    if options.list or not options.names:
        for name, summary in known.items():
            print(f"{name:18} {summary}")
        print(f"{GPU:18} Ops and decode steps on a GPU, beside torch's; gpu --help")
        return 0
    unknown = [name for name in options.names if name not in known]
    if unknown:
        return _misuse(prog, f"no benchmark named {unknown[0]!r}; there are {', '.join(known)}")
    if options.picture is not None and options.picture.suffix != ".svg":
        return _misuse(prog, f"--picture writes SVG: name it {options.picture.stem}.svg")
    with _tables_on_stderr(options.json == "-"):
        path = None if options.json in (None, "-") else Path(options.json)
        found = _Kept(path, machine.describe())
        with _traced(options.trace):
            code = _run_all(prog, options, known, found)
        if options.picture is not None:
            title = f"{machine.cpu_model()}, {', '.join(options.names)}"
            try:
                picture = roofline.svg(title, peaks_of(found.results), found.results)
            except ValueError as error:
                print(f"{prog}: {error}", file=sys.stderr)
                return 1
            options.picture.write_text(picture)
    if options.json == "-":
        print(json.dumps(found.document(complete=code != INTERRUPTED), ensure_ascii=False))
    return code


class _Kept:
    """Outcomes, and the file that grows with them, if there is one: an interrupted run keeps what it has."""

    def __init__(self, path: Path | None, here: dict[str, Any]) -> None:
        self.path, self.machine = path, here
        self.results: list[Result] = []
        self.tables: list[Table] = []
        self.failures: list[Failure] = []

    def add(self, outcome: Result | Table | Failure) -> None:
        if isinstance(outcome, Failure):
            self.failures.append(outcome)
        elif isinstance(outcome, Table):
            self.tables.append(outcome)
        else:
            self.results.append(outcome)
        self.write(complete=False)

    def __bool__(self) -> bool:
        return bool(self.results or self.tables)

    def write(self, complete: bool) -> None:
        if self.path is not None and self:
            write(self.path, self.document(complete))

    def document(self, complete: bool) -> dict[str, Any]:
        peaks = peaks_of(self.results)
        return document(
            self.machine, peaks, self.results, self.failures, self.tables, complete=complete
        )


def _run_all(prog: str, options: argparse.Namespace, known: dict[str, str], found: _Kept) -> int:
    """Print and keep each outcome; the exit code."""
    print(machine.one_line())
    try:
        for name in options.names:
            print(f"\n{name}: {known[name]}", flush=True)
            here = machine.describe()
            path = SAVED / machine.slug(here) / f"{name}.json" if options.save else None
            own = _Kept(path, here)
            for outcome in run(name, options.quick):
                if isinstance(outcome, Failure):
                    print(f"{prog}: {outcome}", file=sys.stderr, flush=True)
                else:
                    shown = table(outcome) if isinstance(outcome, Result) else outcome
                    print(shown, flush=True)
                own.add(outcome)
                found.add(outcome)
            own.write(complete=True)
            if path is not None and own:
                print(f" saved {path}")
    except KeyboardInterrupt:
        so_far = len(found.results) + len(found.tables)
        print(f"{prog}: interrupted; results so far: {so_far}", file=sys.stderr)
        return INTERRUPTED
    if found.path is not None:
        write(found.path, found.document(complete=True))
    return 1 if found.failures else 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Time ops and paths beside their peers, in one run; without a name, list them.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run")
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    parser.add_argument(
        "--quick", action="store_true", help="few repeats and no slow cases: a rough look"
    )
    parser.add_argument("--json", metavar="FILE", help="write results as JSON (- is stdout)")
    parser.add_argument(
        "--picture", metavar="FILE.svg", type=Path, help="draw the cases under this machine's roofs"
    )
    parser.add_argument(
        "--trace",
        metavar="FILE.json",
        help="write what torch's profiler sees, contestants by name (for Perfetto); small calls slow down",
    )
    parser.add_argument(
        "--save", action="store_true", help="keep the results under benchmarks/results"
    )
    return parser


def _misuse(prog: str, message: str) -> int:
    print(f"{prog}: {message}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def _traced(file: str | None) -> Iterator[None]:
    if file is None:
        yield
        return
    import torch
    from torch.profiler import ProfilerActivity, profile

    # An engine's steps are another thread's.
    everybody = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    with profile(activities=[ProfilerActivity.CPU], experimental_config=everybody) as profiler:
        yield
    profiler.export_chrome_trace(file)


@contextlib.contextmanager
def _tables_on_stderr(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


if __name__ == "__main__":
    raise SystemExit(main())
