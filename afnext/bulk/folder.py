"""Answer every recording of a folder once, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, TypeAlias

from .cluster import on_ray
from .pool import in_threads
from .progress import progress
from .recordings import find_recordings
from .results import Results, fingerprint

Answer: TypeAlias = Callable[[Path, Event], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run over a folder did.

    Attributes:
        answered: recordings answered now.
        skipped: done by an earlier run, well or not.
        failed: recordings whose line holds an ``error``, of earlier runs too.
        failed_before: of these, those of earlier runs, which were not tried again.
    """

    answered: int
    skipped: int
    failed: int
    failed_before: int = 0


def answer_folder(
    folder: str | Path,
    out: str | Path,
    settings: Mapping[str, Any],
    prepare: Callable[[], Answer],
    *,
    concurrency: int = 1,
    ray_workers: int | None = None,
    gpus: float = 0,
    retry_failed: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Write a line of JSON for every recording below ``folder`` that ``out`` has no line for yet.

    Lines come in the order in which answers are ready: ``file`` (relative to the folder), what the
    answer holds or ``error``, ``settings``. ``out`` may lie in the folder. See ``Results`` for what a
    kill leaves, and ``find_recordings`` for what counts as a recording.

    Args:
        folder: searched with its subfolders.
        out: JSON Lines.
        settings: whatever the answers depend on; a file made with others is refused.
        prepare: returns the function that answers one recording; called once, and only where there is
            something to do. That function is given the path and an event; where the event is set nobody
            waits for the answer any more. What it raises becomes the line's ``error``.
        concurrency: threads that answer; above 1 the function must bear it.
        ray_workers: answer by so many processes of a Ray cluster instead, see ``on_ray``; ``prepare`` is
            then called in each.
        gpus: of each of these.
        retry_failed: try recordings again that failed before.
        report: told of every recording that fails, in a line.

    Raises:
        AfnextError: the folder or the file cannot be used.
        ValueError: ``concurrency`` is below 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency: must be a whole number from 1, got {concurrency!r}")
    folder = Path(folder)
    files = find_recordings(folder)
    with Results(out, fingerprint(settings), retry_failed=retry_failed) as results:
        todo = [file for file in files if file not in results.done]
        skipped, answered = len(files) - len(todo), 0
        before = results.failed & set(files)
        if todo:
            source: Generator[tuple[str, Mapping[str, Any] | BaseException]]
            if ray_workers is not None:
                source = on_ray(prepare, explain, folder, todo, ray_workers, gpus)
            else:
                source = in_threads(_one(folder, prepare()), todo, concurrency)
            with progress(folder, todo, skipped) as estimate, closing(source) as pairs:
                for file, result in pairs:
                    if isinstance(result, Exception):
                        result = {"error": explain(result, folder / file)}
                    elif isinstance(result, BaseException):
                        raise result
                    if "error" in result:
                        report(f"{file}: {result['error']}")
                    else:
                        answered += 1
                    results.add(file, result)
                    estimate.finish(file, _heard(result))
        return Summary(answered, skipped, len(results.failed & set(files)), len(before))


def explain(error: Exception, path: Path) -> str:
    """What was wrong with a recording in a line, without its path."""
    lines = str(error).strip().splitlines()
    text = lines[0].removeprefix(f"{path}: ") if lines else ""
    expected = isinstance(error, ValueError | OSError)
    return text if text and expected else f"{type(error).__name__}: {text}".rstrip(": ")


def _one(folder: Path, answer: Answer) -> Callable[[str, Event], Mapping[str, Any]]:
    return lambda file, stop: answer(folder / file, stop)


def _heard(answer: Mapping[str, Any]) -> float | None:
    usage = answer.get("usage")
    return usage.get("audio_seconds") if isinstance(usage, Mapping) else None
