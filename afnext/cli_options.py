"""Options that several verbs of the command share: each group is a dataclass, written once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from .errors import AfnextError

Model = Annotated[
    str, typer.Option("--model", "-m", help="nano, a model folder, or a Hugging Face id.")
]
DType = Annotated[str | None, typer.Option("--dtype", help="float32 or bfloat16.")]
Adapter = Annotated[
    str | None, typer.Option("--adapter", help="Folder of a LoRA adapter, merged as it is loaded.")
]
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def _bytes(text: str) -> int:
    """``4G`` as a number."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(i?B)?", str(text).strip(), re.IGNORECASE)
    if found is None:
        raise typer.BadParameter(f"must be bytes, as 4G or 500M, got {text}")
    return int(float(found[1]) * UNITS[found[2].upper()])


def size_option(help: str) -> Any:
    """An option in bytes, K, M, G or T."""
    return typer.Option(parser=_bytes, metavar="SIZE", help=help)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is held."""

    model: Model = "nano"
    variant: Annotated[
        str | None,
        typer.Option("--variant", help="instruct, think, captioner, ...; by default the folder's."),
    ] = None
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; by default the best there is.")
    ] = None
    dtype: DType = None
    quantization: Annotated[
        str | None, typer.Option(help="int8 or int4, on CUDA fp8: store weights in fewer bits.")
    ] = None
    kv_cache_dtype: Annotated[
        str | None, typer.Option(help="int8, on CUDA fp8: store keys and values in 8 bits.")
    ] = None
    draft: Annotated[
        str | None,
        typer.Option(help="A smaller model with the same tokenizer, to guess ahead with."),
    ] = None
    adapter: Adapter = None
    disk_cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder where what was computed of a recording is kept for the next question."
        ),
    ] = None
    disk_cache_bytes: Annotated[
        int | None, size_option("Most that --disk-cache holds, as 50G (16G).")
    ] = None
    cache_bytes: Annotated[
        int | None, size_option("Memory for what is remembered of recordings, as 4G.")
    ] = None


@dataclass(frozen=True)
class SamplingOptions:
    """How an answer is generated."""

    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy; by default the variant's own.")
    ] = None
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer, in tokens.")] = None
    seed: Annotated[
        int | None, typer.Option(help="Of sampling; the same seed gives the same text.")
    ] = None
    top_p: Annotated[
        float | None, typer.Option(help="Keep the likeliest tokens that reach this probability.")
    ] = None
    top_k: Annotated[int | None, typer.Option(help="Keep so many likeliest tokens; 0: all.")] = None
    min_p: Annotated[
        float | None, typer.Option(help="Drop tokens below this share of the likeliest.")
    ] = None
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: what was said becomes less likely.")
    ] = None
    stop: Annotated[
        list[str] | None,
        typer.Option(help="The answer ends before this text; may be given several times."),
    ] = None
    timeout: Annotated[
        float | None, typer.Option(help="Seconds after which an answer ends where it is.")
    ] = None
    speculate: Annotated[
        int | None, typer.Option(help="Tokens to guess ahead; what is said stays the same.")
    ] = None
    json_schema: Annotated[
        Path | None, typer.Option(help="File with a JSON schema that the answer fulfils.")
    ] = None
    choice: Annotated[
        list[str] | None,
        typer.Option(help="Answers to choose from: a,b,c, or one an option where given again."),
    ] = None
    regex: Annotated[
        str | None, typer.Option(help="Regular expression that the whole answer matches.")
    ] = None

    def given(self) -> dict[str, Any]:
        """Those that were set, as ``Assistant`` takes them.

        Raises:
            AfnextError: the schema's file cannot be read, or holds no schema that an answer can fulfil.
        """
        given = {name: value for name, value in asdict(self).items() if value not in (None, [])}
        if self.json_schema is not None:
            given["json_schema"] = _schema(self.json_schema)
        if self.choice and len(self.choice) == 1:
            given["choice"] = self.choice[0].split(",")
        return given


@dataclass(frozen=True)
class ReadingOptions:
    """How recordings are taken and the answer is printed."""

    json: Json = False
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Use the first 30 minutes of a longer recording.")
    ] = False
    partial: Annotated[
        bool, typer.Option("--partial", help="Use what precedes the damage in a broken file.")
    ] = False
    n: Annotated[
        int | None,
        typer.Option("-n", help="Answers to draw, with a --temperature; for --json or -o."),
    ] = None
    logprobs: Annotated[
        int | None,
        typer.Option(
            help="Log-probability of each token, and of so many likeliest; for --json or -o."
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """Options of generating that show in JSON alone, where they were set."""
        given = {"n": self.n, "logprobs": self.logprobs}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class FolderOptions:
    """How a folder of recordings is answered."""

    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Answer a folder: write a line of JSON for each recording here."
        ),
    ] = None
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="With -o: recordings under way at once (4).")
    ] = None
    ray_workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="With -o: answer by so many processes of a Ray cluster (RAY_ADDRESS)."
        ),
    ] = None
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With -o: try again what failed before.")
    ] = False

    def unused(self) -> str | None:
        """An option that was given, where there is no ``-o`` that it goes with."""
        given = [f.name for f in fields(self) if getattr(self, f.name) not in (None, False)]
        return f"--{given[0].replace('_', '-')}" if given else None


def _schema(file: Path) -> str:
    """The schema in a file, as text."""
    from .engine.constraint import check
    from .engine.params import GenerationParams

    try:
        text = file.read_text(encoding="utf-8")
        check("json_schema", GenerationParams(json_schema=text).json_schema)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error).removeprefix("json_schema: ")
        raise AfnextError(f"--json-schema: {file}: {why}") from None
    return text


def spread(verb: Callable[..., None]) -> Callable[..., None]:
    """A verb whose parameters of an options dataclass appear to typer as that class's fields."""
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    names = {name: [f.name for f in fields(kind)] for name, kind in groups.items()}

    @wraps(verb)
    def called(**given: Any) -> None:
        for group, kind in groups.items():
            given[group] = kind(**{name: given.pop(name) for name in names[group]})
        verb(**given)

    parameters = []
    for parameter in inspect.signature(verb).parameters.values():
        if parameter.name in groups:
            kind = groups[parameter.name]
            types = get_type_hints(kind, include_extras=True)
            parameters += [_parameter(f, types[f.name]) for f in fields(kind)]
        else:
            keyword = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(kind=keyword, annotation=hints[parameter.name]))
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


def _parameter(field: Field[Any], annotation: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )
