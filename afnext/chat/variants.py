"""The released models and nano as data: prompts, system prompt, sampling, whether they think aloud.

Prompts and sampling are those of the model cards; the names of tasks are ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from afnext.chat.template import ChatTemplate
from afnext.errors import ChatError

if TYPE_CHECKING:
    from afnext.chat.tokenizer import Tokenizer

TASKS = (
    "transcribe",
    "translate",
    "caption",
    "describe",
    "music",
    "lyrics",
    "diarize",
    "timestamps",
)
"""``caption`` is one or two sentences, ``describe`` a long caption with all that is said,
``diarize`` a transcript by speaker, ``timestamps`` one with times."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a model is best sampled. ``temperature`` 0 is greedy; 0, 1 and 0 switch off ``top_k``,
    ``top_p`` and ``min_p``."""

    max_tokens: int = 1024
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class Variant:
    """A family member.

    Attributes:
        name: how ``--variant`` calls it.
        system_prompt: written where a conversation has none and the folder brings no template.
        prompts: the user's text for each task of :data:`TASKS` that the model was trained for.
        sampling: the model card's.
        thinks: whether answers may begin with ``<think>``.
        reasoning_prompt: what to add to a question to make the model reason, or "".
    """

    name: str
    system_prompt: str | None
    prompts: Mapping[str, str]
    sampling: Sampling = field(default_factory=Sampling)
    thinks: bool = False
    reasoning_prompt: str = ""

    def prompt(self, task: str, *, source: str | None = None, target: str = "English") -> str:
        """The text that asks for ``task``; ``source`` and ``target`` are languages to translate.

        Raises:
            ChatError: the model was not trained for the task, or there is no such task.
        """
        if task not in self.prompts:
            known = ", ".join(self.prompts)
            what = "is not trained for" if task in TASKS else "knows no task called"
            raise ChatError(f"{self.name} {what} {task!r}; it knows: {known}")
        text = self.prompts[task]
        if task == "translate":
            text = text if source else text.replace(" from {source}", "")
            languages = {"{source}": source or "", "{target}": target}
            text = re.sub(r"\{source\}|\{target\}", lambda m: languages[m.group()], text)
        return text


AF_NEXT_SYSTEM_PROMPT = (
    "You are Audio Flamingo-Next, a multimodal assistant for language and audio. "
    "On each turn you receive an optional audio clip which may contain speech, music, or ambient "
    "sounds and optional text, you will receive at least one or both; use your world knowledge and "
    "reasoning to help the user with any task. Interpret the entirety of the content of any input "
    "audio\u2014regardless of whether the user calls it audio, speech, music, or sound."
)
# The misspelling is the release's own: the model was trained with it.
MUSIC_FLAMINGO_SYSTEM_PROMPT = (
    "You are Music Flamingo, a multimodal assistant for language and music. "
    "On each turn you receive an audio clip which contains music and optional text, "
    "you will receive at least one or both; use your world knowledge and reasoning "
    "to help the user with any task. Interpret the entirety of the content any input music"
    "--regardlenss of whether the user calls it audio, music, or sound."
)
AF3_SYSTEM_PROMPT = "You are a helpful assistant."

PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "transcribe": "Transcribe the input speech.",
        "translate": "Translate any speech you hear from {source} into {target}.",
        "caption": "Generate a caption for the input audio.",
        "describe": (
            "Generate a detailed caption for the input audio. In the caption, transcribe all spoken "
            "content by all speakers in the audio precisely."
        ),
        "music": (
            "Summarize the track with precision: mention its musical style, BPM, key, arrangement, "
            "production choices, and the emotions or story it conveys."
        ),
        "lyrics": "Generate a lyrics transcription from the input song.",
        "diarize": (
            "Transcribe the input audio. If multiple speakers are present, provide diarized "
            "transcripts with speaker labels."
        ),
        "timestamps": (
            "Transcribe the spoken content to written English text. Provide segment-level timestamps "
            "for the transcription."
        ),
    }
)

NANO_PROMPTS: Mapping[str, str] = MappingProxyType(
    {
        "transcribe": "Transcribe the input speech.",
        "caption": "Generate a caption for the input audio.",
        "describe": "Generate a detailed caption for the input audio.",
        "diarize": "Who says what?",
        "timestamps": "Transcribe the speech with times.",
    }
)

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        v.name: v
        for v in (
            Variant(
                "instruct",
                AF_NEXT_SYSTEM_PROMPT,
                PROMPTS,
                Sampling(max_tokens=1024, repetition_penalty=1.2),
            ),
            Variant(
                "think",
                AF_NEXT_SYSTEM_PROMPT,
                PROMPTS,
                Sampling(max_tokens=4096, repetition_penalty=1.2),
                thinks=True,
                reasoning_prompt="Reason step by step with timestamps before answering.",
            ),
            Variant(
                "captioner",
                AF_NEXT_SYSTEM_PROMPT,
                PROMPTS,
                Sampling(max_tokens=2048, repetition_penalty=1.2),
            ),
            Variant(
                "music-flamingo",
                MUSIC_FLAMINGO_SYSTEM_PROMPT,
                PROMPTS,
                Sampling(max_tokens=2048),
                thinks=True,
                reasoning_prompt=(
                    "Output the thinking process in <think> </think> and final answer in "
                    "<answer> </answer>"
                ),
            ),
            Variant(
                "audio-flamingo-3",
                AF3_SYSTEM_PROMPT,
                PROMPTS,
                Sampling(
                    max_tokens=1024, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05
                ),
                thinks=True,
                reasoning_prompt=(
                    "\nPlease think and reason about the input audio before you respond."
                ),
            ),
            Variant("nano", None, NANO_PROMPTS, Sampling(max_tokens=256)),
        )
    }
)


def get_variant(name: str) -> Variant:
    """The variant of that name.

    Raises:
        ChatError: there is none.
    """
    if name not in VARIANTS:
        raise ChatError(f"unknown variant {name!r}; there are: {', '.join(VARIANTS)}")
    return VARIANTS[name]


def detect_variant(source: str | Path, config: Mapping[str, Any] | None = None) -> Variant:
    """Which variant a folder or hub id holds.

    ``config["afnext_variant"]`` decides where it is given, then the model type, then the name: of
    the folder, or of the repository where the folder is a snapshot in the hub's cache. What says
    nothing is taken for "instruct".

    Raises:
        ChatError: ``config["afnext_variant"]`` names no variant.
    """
    config = config or {}
    if "afnext_variant" in config:
        return get_variant(str(config["afnext_variant"]))
    if config.get("model_type") == "audioflamingo3":
        return VARIANTS["audio-flamingo-3"]
    path = Path(source)
    name = path.parent.parent.name if path.parent.name == "snapshots" else path.name
    words = re.sub(r"[^a-z0-9]+", "-", name.lower())
    for sign, variant in (
        ("nano", "nano"),
        ("music-flamingo", "music-flamingo"),
        ("flamingo-3", "audio-flamingo-3"),
        ("think", "think"),
        ("caption", "captioner"),
    ):
        if re.search(rf"(?:^|-){sign}", words):
            return VARIANTS[variant]
    return VARIANTS["instruct"]


def template_of(folder: str | Path, variant: Variant, tokenizer: Tokenizer) -> ChatTemplate:
    """How conversations of a model are written, in training as in use: by its folder's template, or where it
    has none by the usual one with the variant's system prompt.

    Raises:
        ChatError: the template cannot be read, or is too long.
    """
    return ChatTemplate.from_folder(
        folder, default_system=variant.system_prompt, variables=tokenizer.special_tokens
    )


def mark_variant(folder: str | Path, name: str) -> None:
    """Write into a folder's ``config.json`` which variant it holds, whatever it will be called.

    Raises:
        ChatError: there is no such variant.
    """
    path = Path(folder) / "config.json"
    config = {**json.loads(path.read_text()), "afnext_variant": get_variant(name).name}
    path.write_text(json.dumps(config, indent=2) + "\n")
