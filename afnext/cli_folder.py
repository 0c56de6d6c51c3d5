"""The verbs of the command over a folder of recordings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .bulk import Summary, answer_folder
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
    """Answer every recording of a folder into a file of JSON lines.

    Args:
        audio: the folder, alone.
        task: what is asked, as it can be said before a model is loaded.
        question: what is asked, in the words of a model.
        load: loads it, where there is something to do.
    """
    from .bulk.answers import asking
    from .engine.params import GenerationParams

    if len(audio) != 1:
        raise typer.BadParameter("answers one folder; give that alone", param_hint="-o")
    assert many.output is not None
    given = sampling.given()
    GenerationParams(**given)  # wrong ones would fail with every recording
    options = {"truncate": reading.truncate, "partial": reading.partial, **given}
    source = str(Path(model.model).resolve()) if Path(model.model).is_dir() else model.model
    held = {"model": source, "variant": model.variant, "dtype": model.dtype}
    held |= {"quantization": model.quantization, "kv_cache_dtype": model.kv_cache_dtype}
    if (adapter := model.adapter) is not None:
        held["adapter"] = str(Path(adapter).resolve()) if Path(adapter).is_dir() else adapter
    settings = {**task, **held, **options}

    def prepare() -> Answer:
        assistant = load(model)
        return asking(assistant, question(assistant), **options)

    return answer_folder(
        audio[0],
        many.output,
        settings,
        prepare,
        concurrency=many.concurrency or CONCURRENCY,
        ray_workers=many.ray_workers,
        gpus=1.0 if (model.device or "").startswith("cuda") else 0.0,
        retry_failed=many.retry_failed,
        report=lambda line: print(f"afnext: {line}", file=sys.stderr),
    )
