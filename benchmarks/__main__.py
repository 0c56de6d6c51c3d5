"""``python -m benchmarks`` and ``afnext bench``: which benchmarks, and where their results go."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import machine, roofline
from .results import document, table, write
from .run import FOLDER, benchmarks, peaks_of, run

SAVED = FOLDER / "results"


def main(arguments: Sequence[str] | None = None, prog: str = "python -m benchmarks") -> int:
    """Exit code: 2 is misuse, 1 is failure."""
    known = benchmarks()
    options = _parser(prog).parse_args(arguments)
    if options.list or not options.names:
        for name, summary in known.items():
            print(f"{name:18} {summary}")
        return 0
    unknown = [name for name in options.names if name not in known]
    if unknown:
        return _misuse(prog, f"no benchmark named {unknown[0]!r}; there are {', '.join(known)}")
    if options.picture is not None and options.picture.suffix != ".svg":
        return _misuse(prog, f"--picture writes SVG: name it {options.picture.stem}.svg")
    with _tables_on_stderr(options.json == "-"):
        print(machine.one_line())
        results = []
        for name in options.names:
            print(f"\n{name}: {known[name]}", flush=True)
            found = run(name, lambda result: print(table(result), flush=True), options.quick)
            results += found
            if options.save and found:
                here = machine.describe()
                path = SAVED / machine.slug(here) / f"{name}.json"
                write(path, document(here, peaks_of(found), found))
                print(f" saved {path}")
        if options.picture is not None:
            title = f"{machine.cpu_model()}, {', '.join(options.names)}"
            try:
                picture = roofline.svg(title, peaks_of(results), results)
            except ValueError as error:
                print(f"{prog}: {error}", file=sys.stderr)
                return 1
            options.picture.write_text(picture)
    if options.json is not None:
        content = document(machine.describe(), peaks_of(results), results)
        if options.json == "-":
            print(json.dumps(content, ensure_ascii=False))
        else:
            write(Path(options.json), content)
    return 0


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
        "--save", action="store_true", help="keep the results under benchmarks/results"
    )
    return parser


def _misuse(prog: str, message: str) -> int:
    print(f"{prog}: {message}", file=sys.stderr)
    return 2


@contextlib.contextmanager
def _tables_on_stderr(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


if __name__ == "__main__":
    raise SystemExit(main())
