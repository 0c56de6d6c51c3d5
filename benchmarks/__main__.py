"""``python -m benchmarks`` lists the cases, ``python -m benchmarks NAME...`` runs them."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

from .timing import machine

FOLDER = Path(__file__).parent
NOT_CASES = {"__init__", "__main__", "timing"}


def cases() -> dict[str, str]:
    """Name and first docstring line of every case, read without importing it."""
    paths = sorted(path for path in FOLDER.glob("*.py") if path.stem not in NOT_CASES)
    docs = {path.stem: ast.get_docstring(ast.parse(path.read_text())) or "" for path in paths}
    return {name: doc.partition("\n")[0] for name, doc in docs.items()}


def main(names: list[str]) -> int:
    known = cases()
    if not names:
        for name, summary in known.items():
            print(f"{name:16} {summary}")
        return 0
    for name in names:
        if name not in known:
            print(f"no benchmark named {name!r}; there are {', '.join(known)}", file=sys.stderr)
            return 2
    print(machine())
    for name in names:
        print(f"\n{name}: {known[name]}")
        importlib.import_module(f".{name}", __package__).run()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
