"""The README's examples run as they are written."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from afnext.training.data import conversations
from tests.command import afnext, program

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = Path(__file__).parents[1] / "examples"
BLOCKS = re.findall(r"```(python|sh)\n(.*?)```", README, re.DOTALL)
PYTHON = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [
    line
    for language, code in BLOCKS
    if language == "sh"
    for line in code.splitlines()
    if line.startswith("afnext ")
]
PLAIN = [line for line in COMMANDS if not set(line) & set("|&;<>()$`*~#")]


@pytest.fixture
def folder(tmp_path: Path, scene_file: Path) -> Path:
    """A folder with a recording ``clip.wav``, that of the examples, and two more in ``recordings``."""
    import soundfile

    (tmp_path / "recordings").mkdir()
    soundfile.write(tmp_path / "clip.wav", *soundfile.read(EXAMPLES / "scene.flac"))
    for name in ("recordings/one.wav", "recordings/two.wav"):
        shutil.copy(scene_file, tmp_path / name)
    return tmp_path


def environment() -> dict[str, str]:
    """Commands of the environment that runs the tests come first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_there_are_examples() -> None:
    assert len(PYTHON) >= 4
    assert len(COMMANDS) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("code", PYTHON)
def test_python_examples_run(code: str, folder: Path) -> None:
    run = program(code, folder)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("command", PLAIN)
def test_commands_run(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run = afnext(*shlex.split(command)[1:])
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("command", [COMMANDS[0], *sorted(set(COMMANDS) - set(PLAIN))])
def test_a_shell_runs_them(command: str, folder: Path) -> None:
    """One, by the installed script, and all that have more than words."""
    run = subprocess.run(
        command, shell=True, cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()


def test_records_that_the_readme_shows_are_read(tmp_path: Path) -> None:
    for number, text in enumerate(re.findall(r"```json\n(.*?)```", README, re.DOTALL)):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        two, none = conversations.read(path)
        assert (two.sounds, len(two.turns), none.sounds) == (("a.wav", "b.wav"), 4, ())


def test_the_recipes_are_where_the_readme_says(tmp_path: Path) -> None:
    """From any folder."""
    (code,) = re.findall(r'`python -c "(import afnext; .*?)"`', README)
    run = program(code, tmp_path)
    assert (Path(run.stdout).parent / "recipes" / "nano" / "chain.yaml").is_file(), run.stderr


def test_files_that_the_readme_names_exist() -> None:
    root = Path(__file__).parent.parent
    links = [link for link in re.findall(r"\]\(([^)#:]+)\)", README) if "//" not in link]
    assert links
    for link in links:
        assert (root / link).exists(), link
