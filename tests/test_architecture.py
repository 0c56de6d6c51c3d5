"""The house rules that a machine can check: dependencies point one way, one door to the kernels,
nothing heavy at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "afnext"

# A package may import from levels below its own, and from its own level where no circle results.
LEVELS = [
    {"errors", "cache"},
    {"ops", "audio"},
    {"chat", "model", "parallel"},
    {"hub"},
    {"engine", "training", "evaluation", "speech"},
    {"assistant", "bulk", "reply", "convert", "report"},
    {"terminal", "server", "cli_options", "cli_folder", "cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parts
    return parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Top-level members of afnext that a file imports, wherever in the file it does."""
    found: set[str] = set()
    package = ["afnext", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            modules = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {m.split(".")[1] for m in modules if m.startswith("afnext.")}
    return found - {"__version__"}


FILES = sorted(ROOT.rglob("*.py"))
ARROWS = {
    (package_of(f), target)
    for f in FILES
    if f != ROOT / "__init__.py"
    for target in imported(f)
    if target != package_of(f) and target != "_C"
}


def test_every_package_has_a_level() -> None:
    names = {package_of(f) for f in FILES} - {"__init__", "assets", "recipes"}
    assert names <= set(LEVEL)


def test_no_arrow_points_back() -> None:
    back = {(a, b) for a, b in ARROWS if LEVEL[b] > LEVEL[a]}
    assert not back


def test_no_circles() -> None:
    remaining = set(ARROWS)
    while remaining:
        leaves = {b for _, b in remaining} - {a for a, _ in remaining}
        assert leaves, f"a circle among {sorted(remaining)}"
        remaining = {(a, b) for a, b in remaining if b not in leaves}


def test_only_ops_imports_the_compiled_module() -> None:
    users = {package_of(f) for f in FILES if "_C" in imported(f)}
    assert users == {"ops"}


def test_the_core_knows_neither_torch_nor_python() -> None:
    sources = Path(ROOT.parent / "csrc").rglob("*.[ch]*")
    for source in sources:
        text = source.read_text()
        assert "#include <torch" not in text, source
        if "bindings" not in source.parts:
            assert "#include <pybind11" not in text, source
            assert "#include <Python" not in text, source


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("afnext", ["torch", "numpy", "jinja2", "tokenizers", "soundfile", "rich"]),
        ("afnext.cli", ["torch", "numpy", "jinja2", "tokenizers", "soundfile"]),
        ("afnext.bulk", ["torch", "numpy", "rich"]),
        ("afnext.chat", ["torch", "jinja2", "tokenizers"]),
        ("afnext.audio", ["torch", "soundfile", "soxr", "av"]),
        (
            "afnext.assistant",
            ["transformers", "scipy", "soundfile", "soxr", "av", "huggingface_hub"],
        ),
    ],
)
def test_imports_stay_light(module: str, unwanted: list[str]) -> None:
    code = f"import sys, {module}; print([m for m in {unwanted!r} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
