"""Answer every recording of a folder once, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from afnext.errors import AfnextError

from .cluster import on_ray
from .fault import explain, is_its_own
from .pool import Stop, in_threads
from .progress import progress
from .recordings import find_recordings
from .results import Results, fingerprint

Answer: TypeAlias = Callable[[Path, Stop], Mapping[str, Any]]
Prepare: TypeAlias = Callable[[str | None], Answer]
IN_A_ROW = 3  # recordings that go wrong by no fault of theirs, after which the rest is not tried


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run over a folder did.

    Attributes:
        answered: recordings answered now.
        skipped: done by an earlier run, well or not.
        failed: recordings whose line holds an ``error``, of earlier runs too.
        failed_before: of these, those of earlier runs, which were not tried again.
        cut_off: answers of this run that ended for want of tokens.
        left: recordings that went wrong now by no fault of theirs: they have no line, and the next run tries
            them again.
    """

    answered: int
    skipped: int
    failed: int
    failed_before: int = 0
    cut_off: int = 0
    left: int = 0


def answer_folder(
    folder: str | Path,
    out: str | Path,
    settings: Mapping[str, Any],
    prepare: Prepare,
    *,
    concurrency: int = 1,
    ray_workers: int | None = None,
    device: str | None = None,
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
        prepare: given a device, returns the function that answers one recording; called once, and only where
            there is something to do. That function is given the path and a ``Stop``; where it is set nobody
            waits for the answer any more. What it raises becomes the line's ``error`` where the recording is
            at fault (``is_its_own``).
        concurrency: threads that answer, of a worker; above 1 the function must bear it.
        ray_workers: answer by so many processes of a Ray cluster instead, see ``on_ray``; ``prepare`` is
            then called in each.
        device: for ``prepare``; see ``on_ray``.
        retry_failed: try recordings again that failed before.
        report: told of every recording that fails, in a line.

    Raises:
        AfnextError: the folder or the file cannot be used, or several recordings in a row went wrong by no
            fault of theirs: whatever is broken would break on the rest too.
        ValueError: ``concurrency`` is below 1.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency: must be a whole number from 1, got {concurrency!r}")
    folder = Path(folder)
    files = find_recordings(folder)
    with Results(out, fingerprint(settings), retry_failed=retry_failed) as results:
        todo = [file for file in files if file not in results.done]
        skipped, answered, cut_off, left = len(files) - len(todo), 0, 0, 0
        before = results.failed & set(files)
        if todo:
            source: Generator[tuple[str, Mapping[str, Any] | BaseException]]
            if ray_workers is not None:
                source = on_ray(prepare, folder, todo, ray_workers, concurrency, device)
            else:
                source = in_threads(_one(folder, prepare(device)), todo, concurrency)
            row, most = 0, max(IN_A_ROW, 1 + concurrency * (ray_workers or 1))  # they share steps
            with progress(folder, todo, skipped) as estimate, closing(source) as pairs:
                for file, result in pairs:
                    if isinstance(result, Exception):
                        line = explain(result, folder / file)
                        if not is_its_own(result, folder):
                            row, left = row + 1, left + 1
                            if row >= most:
                                raise _broken(file, line, row, out) from result
                            report(f"{file}: {line} (left for another run)")
                            estimate.finish(file, None)
                            continue
                        result = {"error": line}
                    elif isinstance(result, BaseException):
                        raise result
                    row = 0
                    if "error" in result:
                        report(f"{file}: {result['error']}")
                    else:
                        answered += 1
                        cut_off += result.get("stopped") == "length"
                    results.add(file, result)
                    estimate.finish(file, _heard(result))
        failed = len(results.failed & set(files))
        return Summary(answered, skipped, failed, len(before), cut_off, left)


def _broken(file: str, line: str, row: int, out: str | Path) -> AfnextError:
    return AfnextError(
        f"{file}: {line}: it is no fault of the recording's, nor of the {row - 1} before it; nothing is said "
        f"of them in {out}, and the same command tries them again"
    )


def _one(folder: Path, answer: Answer) -> Callable[[str, Stop], Mapping[str, Any]]:
    return lambda file, stop: answer(folder / file, stop)


def _heard(answer: Mapping[str, Any]) -> float | None:
    usage = answer.get("usage")
    return usage.get("audio_seconds") if isinstance(usage, Mapping) else None
