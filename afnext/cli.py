"""The ``afnext`` command: verbs only; the work is elsewhere.

The answer goes to stdout, everything else to stderr. Exit code 2 is misuse, 1 is failure.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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

Audio = Annotated[list[str], typer.Argument(metavar="AUDIO...", help="One file or several.")]
Model = Annotated[
    str, typer.Option("--model", "-m", help="nano, a model folder, or a Hugging Face id.")
]
VariantName = Annotated[
    str | None,
    typer.Option("--variant", help="instruct, think, captioner, ...; by default the folder's."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; by default the best there is.")]
DType = Annotated[str | None, typer.Option("--dtype", help="float32 or bfloat16.")]
Temperature = Annotated[
    float | None, typer.Option(help="0 is greedy; by default the variant's own.")
]
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens.")]
Seed = Annotated[int | None, typer.Option(help="Of sampling; the same seed gives the same text.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Truncate = Annotated[
    bool, typer.Option("--truncate", help="Use the first 30 minutes of a longer recording.")
]
Partial = Annotated[
    bool, typer.Option("--partial", help="Use what precedes the damage in a broken file.")
]


@app.command()
def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="AUDIO... QUESTION", help="One file or several, then the question in quotes."
        ),
    ],
    model: Model = "nano",
    variant: VariantName = None,
    device: Device = None,
    dtype: DType = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    json: Json = False,
    truncate: Truncate = False,
    partial: Partial = False,
) -> None:
    """Answer a question about one recording or several."""
    *audio, question = words
    if not audio:
        raise typer.BadParameter("give a recording, then the question in quotes")
    if not question.strip():
        raise typer.BadParameter("the question is empty", param_hint="QUESTION")
    for file in audio:
        if not Path(file).exists():
            raise AudioError(f"{file}: no such file (the question comes last, in quotes)")
    assistant = _load(model, variant, device, dtype)
    _answer(assistant, audio, question, json, truncate, partial, temperature, max_tokens, seed)


@app.command()
def transcribe(
    audio: Audio,
    model: Model = "nano",
    variant: VariantName = None,
    device: Device = None,
    dtype: DType = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    json: Json = False,
    truncate: Truncate = False,
    partial: Partial = False,
    task: Annotated[
        str,
        typer.Option(help="transcribe, translate, lyrics, diarize or timestamps."),
    ] = "transcribe",
    target: Annotated[str, typer.Option(help="Language to translate into.")] = "English",
    format: Annotated[
        str, typer.Option("--format", "-f", help="text, or srt or vtt (by --task timestamps).")
    ] = "text",
) -> None:
    """Write down what is said."""
    if format not in ("text", "srt", "vtt"):
        raise typer.BadParameter("must be text, srt or vtt", param_hint="--format")
    if format != "text" and task == "transcribe":
        task = "timestamps"  # subtitles need times
    assistant = _load(model, variant, device, dtype)
    prompt = assistant.variant.prompt(task, target=target)
    _answer(
        assistant, audio, prompt, json, truncate, partial, temperature, max_tokens, seed, format
    )


@app.command()
def caption(
    audio: Audio,
    detailed: Annotated[bool, typer.Option("--detailed", help="A long caption.")] = False,
    model: Model = "nano",
    variant: VariantName = None,
    device: Device = None,
    dtype: DType = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
    json: Json = False,
    truncate: Truncate = False,
    partial: Partial = False,
) -> None:
    """Describe a recording."""
    assistant = _load(model, variant, device, dtype)
    prompt = assistant.variant.prompt("describe" if detailed else "caption")
    _answer(assistant, audio, prompt, json, truncate, partial, temperature, max_tokens, seed)


@app.command()
def chat(
    audio: Annotated[list[str] | None, typer.Argument(metavar="[AUDIO...]")] = None,
    model: Model = "nano",
    variant: VariantName = None,
    device: Device = None,
    dtype: DType = None,
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    seed: Seed = None,
) -> None:
    """Talk about recordings in the terminal."""
    from .terminal import Conversation

    assistant = _load(model, variant, device, dtype)
    options = _options(temperature, max_tokens, seed)
    if not Conversation(assistant, audio or [], options).run():
        sys.exit(1)


@app.command()
def info(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Describe a model instead.")
    ] = None,
    geometry: Annotated[
        str | None, typer.Option(help="Describe a geometry instead: 7b is the release's.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what this installation runs on, or what a model weighs."""
    from . import report

    if model is not None and geometry is not None:
        raise typer.BadParameter("give --model or --geometry, not both", param_hint="--geometry")
    if model is not None:
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
    model: Annotated[str, typer.Argument(help="nano, a model folder, or a Hugging Face id.")],
    out: Annotated[Path, typer.Argument(help="New folder.")],
    dtype: DType = None,
) -> None:
    """Write a model folder anew, in another dtype; transformers loads it too."""
    from .convert import convert as convert_model

    _print(str(convert_model(model, out, dtype=dtype)))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe's name (nano) or a YAML file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where it stopped.")] = False,
    data: Annotated[
        Path | None, typer.Option(help="Folder for synthesised clips, kept between runs.")
    ] = None,
) -> None:
    """Train a model from a recipe; print the folder of the finished model."""
    from .training import train as run

    path = Path(__file__).parent / "recipes" / f"{recipe}.yaml"
    _print(str(run(path if path.is_file() else recipe, out, resume=resume, data=data)))


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def bench(context: typer.Context) -> None:
    """Time ops and paths beside their peers on this machine: afnext bench --help."""
    # By name: in a checkout the package lies outside of this one, beside it.
    benchmarks = import_module("afnext.benchmarks.__main__")
    sys.exit(benchmarks.main(context.args, prog="afnext bench"))


def _options(temperature: float | None, max_tokens: int | None, seed: int | None) -> dict[str, Any]:
    given = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    return {name: value for name, value in given.items() if value is not None}


def _load(model: str, variant: str | None, device: str | None, dtype: str | None) -> Assistant:
    from .assistant import load_model

    with _waiting("loading the model"):
        return load_model(model, variant=variant, device=device, dtype=dtype)


def _answer(
    assistant: Assistant,
    audio: list[str],
    question: str,
    json: bool,
    truncate: bool,
    partial: bool,
    temperature: float | None,
    max_tokens: int | None,
    seed: int | None,
    format: str = "text",
) -> None:
    """Stream an answer to a terminal, or print it whole."""
    from .chat import Message, to_srt, to_vtt

    options = _options(temperature, max_tokens, seed)
    with _waiting("listening"):
        pieces = assistant.stream(
            [Message("user", question, audio)], truncate=truncate, partial=partial, **options
        )
        first = next(pieces)
    streaming = format == "text" and not json
    reply, piece = first.reply, first
    while reply is None:
        if streaming:
            _write(piece.text, thinking=piece.thinking)
        piece = next(pieces)
        reply = piece.reply
    if json:
        import json as json_module

        _print(json_module.dumps(reply.to_dict(), ensure_ascii=False))
    elif streaming:
        _print("")
    else:
        _write((to_srt if format == "srt" else to_vtt)(reply.segments))
        if not reply.segments:
            _note("the answer holds no timestamps")
    if reply.stopped == "length":
        _note("the answer was cut off: raise --max-tokens")


def _waiting(what: str) -> Any:
    """A spinner on stderr while nothing can be shown; nothing in a pipe."""
    if not sys.stderr.isatty():
        from contextlib import nullcontext

        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(f"{what} ...")


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
    except (AfnextError, ValueError, OSError, MemoryError) as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()
            sys.exit(1)
        lines = str(error).strip().splitlines()
        _note(lines[0] if lines else type(error).__name__)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
