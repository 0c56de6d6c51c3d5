"""The verbs of the command over a folder of recordings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import typer

from .bulk import Summary, answer_folder
from .bulk.progress import clock
from .cli_options import FolderOptions, ModelOptions, ReadingOptions, SamplingOptions

if TYPE_CHECKING:
    from .assistant import Assistant
    from .bulk.folder import Answer

CONCURRENCY = 4


def answer_each(
    audio: Sequence[str],
    task: dict[str, str],
    question: Callable[[Assistant], str],
    load: Callable[[ModelOptions], Assistant],
    *,
    model: ModelOptions,
    sampling: SamplingOptions,
    reading: ReadingOptions,
    many: FolderOptions,
) -> Summary:
    """Answer every recording of a folder into a file of JSON lines; say on stderr what fails, and in the end
    how it went.

    Args:
        audio: the folder, alone.
        task: what is asked, as it can be said before a model is loaded.
        question: what is asked, in the words of a model.
        load: loads it, where there is something to do.
    """
    from .bulk.answers import asking
    from .engine.params import GenerationParams
    from .hub import find_adapter, find_model
    from .model.revision import revision

    if len(audio) != 1:
        raise typer.BadParameter("answers one folder; give that alone", param_hint="-o")
    assert many.output is not None
    device = model.device
    if many.ray_workers is not None and (device or "").startswith("cuda:"):
        raise typer.BadParameter("Ray hands out the GPUs: give cuda", param_hint="--device")
    given = sampling.given() | reading.given()
    GenerationParams(**{"temperature": 1.0, **given})  # wrong ones would fail with every recording
    options = {"truncate": reading.truncate, "partial": reading.partial, **given}
    held = {"model": _named(model.model), "variant": model.variant, "dtype": model.dtype}
    held |= {"quantization": model.quantization, "kv_cache_dtype": model.kv_cache_dtype}
    held["revision"] = revision(find_model(model.model))
    if (adapter := model.adapter) is not None:
        held |= {"adapter": _named(adapter), "adapter_revision": revision(find_adapter(adapter))}
    settings = {**task, **held, **options}
    settings.pop("speculate", None)  # what is said stays the same

    def prepare(device: str | None) -> Answer:
        assistant = load(replace(model, device=device))
        return asking(assistant, question(assistant), **options)

    begun = perf_counter()
    done = answer_folder(
        audio[0],
        many.output,
        settings,
        prepare,
        concurrency=many.concurrency or CONCURRENCY,
        ray_workers=many.ray_workers,
        device=device,
        retry_failed=many.retry_failed,
        report=_say,
    )
    _say(_in_words(done, perf_counter() - begun))
    return done


def _named(source: str) -> str:
    """A model or an adapter as settings name it: a folder by where it is."""
    return str(Path(source).resolve()) if Path(source).is_dir() else source


def _in_words(done: Summary, seconds: float) -> str:
    words = [f"{done.answered} answered in {clock(seconds)}"]
    if done.cut_off:
        words.append(f"{done.cut_off} of them cut off (--max-tokens)")
    if done.failed:
        before = f" ({done.failed_before} in an earlier run)" if done.failed_before else ""
        words.append(f"{done.failed} failed{before}")
    if done.left:
        words.append(f"{done.left} left for another run")
    if done.skipped:
        words.append(f"{done.skipped} were there before")
    return ", ".join(words)


def _say(line: str) -> None:
    print(f"afnext: {line}", file=sys.stderr, flush=True)
