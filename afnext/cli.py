"""The ``afnext`` command: verbs only; the work is elsewhere.

The answer goes to stdout, everything else to stderr. Exit code 2 is misuse, 1 is failure.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_options import (
    Adapter,
    DType,
    FolderOptions,
    Json,
    ModelOptions,
    ReadingOptions,
    SamplingOptions,
    spread,
)
from .errors import AfnextError, AudioError

if TYPE_CHECKING:
    from .assistant import Assistant

app = typer.Typer(
    name="afnext",
    help="Ask recordings: Audio Flamingo Next, on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Audio = Annotated[
    list[str], typer.Argument(metavar="AUDIO", help="One file or several; a folder with -o.")
]


@app.command()
@spread
def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="AUDIO.. QUESTION",
            help="One file or several, or a folder with -o; then the question in quotes.",
        ),
    ],
    model: ModelOptions,
    sampling: SamplingOptions,
    reading: ReadingOptions,
    many: FolderOptions,
) -> None:
    """Answer a question about one recording or several, or about each of a folder."""
    *audio, question = words
    if not audio:
        raise typer.BadParameter("give a recording, then the question in quotes")
    if not question.strip():
        raise typer.BadParameter("the question is empty", param_hint="QUESTION")
    for file in audio:
        if not Path(file).exists():
            raise AudioError(f"{file}: no such file (the question comes last, in quotes)")
    if many.output is not None:
        options = {"model": model, "sampling": sampling, "reading": reading, "many": many}
        _answer_each(audio, {"question": question}, lambda _: question, **options)
        return
    _alone(audio, many)
    _answer(_load(model), audio, question, sampling, reading)


@app.command()
@spread
def transcribe(
    audio: Audio,
    model: ModelOptions,
    sampling: SamplingOptions,
    reading: ReadingOptions,
    many: FolderOptions,
    task: Annotated[
        str,
        typer.Option(help="transcribe, translate, lyrics, diarize or timestamps."),
    ] = "transcribe",
    target: Annotated[
        str | None, typer.Option(help="With --task translate: into which language (English).")
    ] = None,
    format: Annotated[
        str, typer.Option("--format", "-f", help="text, or srt or vtt (by --task timestamps).")
    ] = "text",
) -> None:
    """Write down what is said."""
    if format not in ("text", "srt", "vtt"):
        raise typer.BadParameter("must be text, srt or vtt", param_hint="--format")
    if format != "text" and task == "transcribe":
        task = "timestamps"  # subtitles need times
    if target is not None and task != "translate":
        raise typer.BadParameter("is for --task translate", param_hint="--target")
    target = target or "English"
    if many.output is not None:
        if format != "text":
            raise typer.BadParameter(
                "is for one recording; with -o ask for --task timestamps: lines have segments with times",
                param_hint="--format",
            )
        prompt = partial(_prompt, task=task, target=target)
        options = {"model": model, "sampling": sampling, "reading": reading, "many": many}
        _answer_each(audio, {"task": task, "target": target}, prompt, **options)
        return
    if format != "text" and reading.json:
        raise typer.BadParameter(
            "cannot be given with --json, whose segments have times", param_hint="--format"
        )
    _alone(audio, many)
    assistant = _load(model)
    _answer(assistant, audio, _prompt(assistant, task, target), sampling, reading, format)


@app.command()
@spread
def caption(
    audio: Audio,
    model: ModelOptions,
    sampling: SamplingOptions,
    reading: ReadingOptions,
    many: FolderOptions,
    detailed: Annotated[bool, typer.Option("--detailed", help="A long caption.")] = False,
) -> None:
    """Describe a recording."""
    task = "describe" if detailed else "caption"
    if many.output is not None:
        options = {"model": model, "sampling": sampling, "reading": reading, "many": many}
        _answer_each(audio, {"task": task}, partial(_prompt, task=task), **options)
        return
    _alone(audio, many)
    assistant = _load(model)
    _answer(assistant, audio, _prompt(assistant, task), sampling, reading)


@app.command()
@spread
def chat(
    model: ModelOptions,
    sampling: SamplingOptions,
    audio: Annotated[list[str] | None, typer.Argument(metavar="AUDIO")] = None,
) -> None:
    """Talk about recordings in the terminal."""
    from .terminal import Conversation

    if not Conversation(_load(model), audio or [], sampling.given()).run():
        sys.exit(1)


@app.command()
def info(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Describe a model instead.")
    ] = None,
    geometry: Annotated[
        str | None, typer.Option(help="Describe a geometry instead: 7b is the release's.")
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(help="Check a folder's weights instead, by the digests written with them."),
    ] = None,
    json: Json = False,
) -> None:
    """Say what this installation runs on, or what a model weighs; or whether its weights are whole."""
    from . import report

    if sum(given is not None for given in (model, geometry, verify)) > 1:
        raise typer.BadParameter("give one of --model, --geometry and --verify")
    if verify is not None:
        with _progress() as told:
            facts = report.verified(verify, told)
    elif model is not None:
        facts = report.model(model)
    elif geometry is not None:
        facts = report.geometry(geometry)
    else:
        facts = report.installation()
    _print(report.as_json(facts) if json else report.as_text(facts))


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="A Hugging Face id.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
) -> None:
    """Download a model from the Hugging Face hub, and print the folder it is in."""
    from . import hub

    _print(str(hub.pull(model, revision=revision)))


@app.command()
def convert(
    model: Annotated[
        str,
        typer.Argument(
            help="nano, a model folder, a Hugging Face id, or the folder of a training run or checkpoint."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    dtype: DType = None,
    quantization: Annotated[
        str | None,
        typer.Option(help="int8 or int4: weights in fewer bits, for afnext; fp8: for CUDA."),
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(
            help="For int4: a recording, or a folder of them, that rounding goes by; may be given "
            "several times."
        ),
    ] = None,
    adapter: Adapter = None,
) -> None:
    """Write a model folder anew, in another dtype (transformers loads it too) or in fewer bits."""
    from .bulk import find_recordings
    from .convert import convert as convert_model

    recordings: list[Path] = []
    for path in calibrate or ():
        recordings += [path / f for f in find_recordings(path)] if path.is_dir() else [path]
    with _progress() as told:
        made = convert_model(
            model, out, dtype=dtype, quantization=quantization, calibrate=recordings,
            adapter=adapter, told=told,
        )  # fmt: skip
    _print(str(made))


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe's name (nano, nano-more, af-whisper, 7b, ..) or a YAML file."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", file_okay=False, help="Folder of the run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="Folder for synthesised recordings, kept between runs."),
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Stop after this stage; may be given several times.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; by default what the recipe says.")
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the log for TensorBoard too.")
    ] = False,
) -> None:
    """Train a model by a chain of stages; print the folder of the finished model. Under torchrun on all its
    processes: torchrun --nproc-per-node 4 --no-python afnext train ...
    """
    from .evaluation.samples import write_samples
    from .training import hold_memory
    from .training import train as run

    hold_memory()
    made = run(
        _chain(recipe), out, resume=resume, data=data, stages=stage or (), device=device,
        show=write_samples, tensorboard=tensorboard,
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes
        _print(str(made))


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (nano, 7b, ...) or a YAML file.")],
    processes: Annotated[int, typer.Option(min=1, help="Of the run, a device each.")] = 1,
    ulysses: Annotated[
        int | None, typer.Option(min=1, help="Processes that share heads; by default the recipe's.")
    ] = None,
    ring: Annotated[
        int | None, typer.Option(min=1, help="Groups that share keys; by default the recipe's.")
    ] = None,
    device_memory: Annotated[
        float, typer.Option(min=0.0, help="GB of a device: say what fits.")
    ] = 0.0,
    utilisation: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Share of the peak that computing reaches.")
    ] = 0.4,
    peak: Annotated[
        float, typer.Option(min=0.001, help="T operations/s of a device (H100: 989).")
    ] = 989.0,
    geometry: Annotated[
        str | None, typer.Option(help="7b, where the folder a recipe begins with is not here.")
    ] = None,
    json: Json = False,
) -> None:
    """Print what a recipe takes before anything runs: memory of a device by part, time of a step. No weights
    are read.
    """
    from .model.info import geometry as known_geometry
    from .training import load_recipe, planner
    from .training.config import ParallelConfig
    from .training.data.store import is_remote
    from .training.recipe import told_of

    parallel = None
    if ulysses is not None or ring is not None:
        parallel = ParallelConfig(ulysses or 1, ring or 1)
    resources = planner.Resources(
        processes, parallel, peak=peak * 1e12, utilisation=utilisation,
        device_memory=device_memory * 1e9,
    )  # fmt: skip
    model = None if geometry is None else known_geometry(geometry)
    config = load_recipe(_chain(recipe))
    with told_of(_chain(recipe)):
        found = planner.plan(config, resources, model)
    made = planner.made(config)
    if json:
        import json as writer

        _print(writer.dumps(planner.as_dict(found, resources, made)))
    else:
        _print(planner.as_text(found, resources, made))
    for name, source in config.sources.items():
        if not is_remote(source.path) and not Path(source.path).exists():
            _note(f"sources: {name}: nothing is at {Path(source.path).absolute()} yet")


@app.command("eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(help="nano, a model folder, or a Hugging Face id.")
    ] = "nano",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for scores and every answer.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=2, help="Recordings of each group; by default all. Of fewer no target is judged."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder for the held-out recordings, kept between runs.")
    ] = None,
    root: Annotated[
        Path, typer.Option(help="Where packages with recordings are installed or unpacked.")
    ] = Path("/"),
    json: Json = False,
) -> None:
    """Score a model on held-out recordings, beside chance: a table, or JSON."""
    from .evaluation import card, suite
    from .evaluation.held_out import default_folder
    from .hub import find_model

    folder = find_model(model)  # first: recordings take minutes
    with _progress() as told:
        recordings = suite.prepare(data or default_folder(), told)
        evaluation = suite.evaluate(folder, recordings, limit, root=root, progress=told)
    if out is not None:
        evaluation.save(out)
    if json:
        import json as writer

        _print(writer.dumps(evaluation.to_dict()))
    else:
        _print(card.tables(evaluation.to_dict()).strip())
    for line in evaluation.notes:
        _note(line)


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench(context: typer.Context) -> None:
    """Time ops and paths beside their peers on this machine: afnext bench --help."""
    # By name: in a checkout the package lies outside of this one, beside it.
    benchmarks = import_module("afnext.benchmarks.__main__")
    sys.exit(benchmarks.main(context.args, prog="afnext bench"))


def _chain(recipe: str) -> str | Path:
    """The folder of a recipe in the package, or the file."""
    path = Path(__file__).parent / "recipes" / recipe
    return path if (path / "chain.yaml").is_file() else recipe


def _load(options: ModelOptions) -> Assistant:
    from .assistant import load_model

    with _waiting("loading the model"):
        return load_model(**asdict(options))


def _prompt(assistant: Assistant, task: str, target: str = "English") -> str:
    return assistant.variant.prompt(task, target=target)


def _answer_each(
    audio: list[str],
    task: dict[str, str],
    question: Callable[[Assistant], str],
    **options: Any,
) -> None:
    """Answer every recording of a folder; exit with 1 if any failed."""
    from .cli_folder import answer_each

    out = options["many"].output
    try:
        done = answer_each(audio, task, question, _load, **options)
    except KeyboardInterrupt:
        _note(f"stopped: what is in {out} is whole, and the same command goes on from there")
        raise
    _print(str(out))
    if done.failed:
        _note(f'"error" in {out} says why it failed, --retry-failed tries again')
    if done.failed or done.left:
        sys.exit(1)


def _alone(audio: list[str], many: FolderOptions) -> None:
    """Refuse what only a folder of recordings has a use for."""
    for file in audio:
        if Path(file).is_dir():
            raise AudioError(f"{file}: is a folder; -o FILE answers about each recording in it")
    if name := many.unused():
        raise typer.BadParameter("works on a folder only, with -o", param_hint=name)


def _answer(
    assistant: Assistant,
    audio: list[str],
    question: str,
    sampling: SamplingOptions,
    reading: ReadingOptions,
    format: str = "text",
) -> None:
    """Stream an answer to a terminal, or print it whole."""
    from .chat import Message, to_srt, to_vtt

    if not reading.json and (named := next(iter(reading.given()), None)) is not None:
        hint = "-n" if named == "n" else f"--{named}"
        raise typer.BadParameter("shows in --json alone", param_hint=hint)

    with _waiting("listening"):
        pieces = assistant.stream(
            [Message("user", question, audio)],
            truncate=reading.truncate,
            partial=reading.partial,
            **sampling.given(),
            **reading.given(),
        )
        first = next(pieces)
    streaming = format == "text" and not reading.json
    reply, piece = first.reply, first
    while reply is None:
        if streaming:
            _write(piece.text, thinking=piece.thinking)
        piece = next(pieces)
        reply = piece.reply
    if reading.json:
        import json

        _print(json.dumps(reply.to_dict(), ensure_ascii=False))
    elif streaming:
        _print("")
    else:
        _write((to_srt if format == "srt" else to_vtt)(reply.segments))
        if not any(segment.text for segment in reply.segments):
            _note("the answer holds no words with times")
    if reply.stopped == "length":
        _note("the answer was cut off: raise --max-tokens")


def _waiting(what: str) -> Any:
    """A spinner on stderr while nothing can be shown; nothing in a pipe."""
    if not sys.stderr.isatty():
        from contextlib import nullcontext

        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(f"{what} ...")


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr that is told what is done and the share of it; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda what, share: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def _print(text: str) -> None:
    print(text, flush=True)


def _write(text: str, *, thinking: bool = False) -> None:
    """Thinking goes to stderr, dimmed on a terminal: stdout is the answer."""
    stream = sys.stderr if thinking else sys.stdout
    dim = thinking and stream.isatty()
    stream.write(f"\x1b[2m{text}\x1b[0m" if dim else text)
    stream.flush()


def _note(text: str) -> None:
    print(f"afnext: {text}", file=sys.stderr)


def main() -> None:
    """Run the command; errors and warnings are one line."""
    warnings.showwarning = lambda message, *_, **__: _note(str(message))
    try:
        app()
    except (AfnextError, ValueError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
            sys.exit(1)
        lines = str(error).strip().splitlines()
        line = lines[0] if lines else type(error).__name__
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for this
            line += " (--quantization int8 and --kv-cache-dtype int8 take less)"
        _note(line)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
