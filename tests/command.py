"""The command, and programs, in processes of their own, forked from one that has torch imported: they start
in a moment, where the installed script, which ``tests/test_readme.py`` runs, takes seconds to import."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.parallel.processes import forked

LIMIT = 600.0
"""Seconds after which a process is given up."""


def afnext(*args: object, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Runs ``afnext`` with ``args`` in the folder that the test is in; ``env`` is added to the environment
    (what is read while torch or the kernels are loaded comes too late there: use :func:`installed`).

    Raises:
        subprocess.TimeoutExpired: after ``LIMIT`` seconds.
    """
    words = ["afnext", *map(str, args)]
    return _run(_command, words, Path.cwd(), {**os.environ, **env}, stdin)


def program(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs lines of Python in ``folder``, as :func:`afnext` does."""
    return _run(_program, [code], folder, dict(os.environ), "")


def installed(*args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """``afnext`` by the installed script, in a new process."""
    command = str(Path(sys.executable).with_name("afnext"))
    return subprocess.run(
        [command, *map(str, args)],
        capture_output=True, text=True, env={**os.environ, **env}, timeout=LIMIT,
    )  # fmt: skip


def _command() -> None:
    from afnext.cli import main

    main()


def _program() -> None:
    exec(compile(sys.argv[0], "<program>", "exec"), {"__name__": "__main__"})


def _run(
    target: Callable[[], None], words: list[str], where: Path, env: dict[str, str], stdin: str
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as name:
        streams = [Path(name) / number for number in "012"]
        streams[0].write_text(stdin)
        process = forked().Process(target=_main, args=(target, words, where, env, streams))
        process.start()
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(words, LIMIT)
        out, err = (stream.read_text() for stream in streams[1:])
    return subprocess.CompletedProcess(words, process.exitcode, out, err)


def _main(
    target: Callable[[], None], words: list[str], where: Path, env: dict[str, str],
    streams: list[Path],
) -> None:  # fmt: skip
    written = os.O_WRONLY | os.O_CREAT
    for number, (path, flags) in enumerate(
        zip(streams, (os.O_RDONLY, written, written), strict=True)
    ):
        os.dup2(os.open(path, flags), number)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing has put nothing in its place
    os.environ.clear()
    os.environ.update(env)
    os.chdir(where)
    sys.argv = words
    target()
