"""Variants are found by name and type, and ask in the words of the model cards."""

from __future__ import annotations

import dataclasses

import pytest

from afnext.chat import TASKS, VARIANTS, detect_variant, get_variant
from afnext.engine import GenerationParams
from afnext.errors import ChatError


@pytest.mark.parametrize(
    ("source", "config", "name"),
    [
        ("nvidia/audio-flamingo-next-hf", {"model_type": "musicflamingo"}, "instruct"),
        ("nvidia/audio-flamingo-next-think-hf", {"model_type": "musicflamingo"}, "think"),
        ("/models/audio_flamingo_next_captioner", None, "captioner"),
        ("nvidia/music-flamingo-2601-hf", {"model_type": "musicflamingo"}, "music-flamingo"),
        ("nvidia/audio-flamingo-3-hf", None, "audio-flamingo-3"),
        ("/somewhere", {"model_type": "audioflamingo3"}, "audio-flamingo-3"),
        ("/site-packages/afnext/assets/nano", None, "nano"),
        ("/home/thinker/captions/model", {}, "instruct"),
        ("/x/models--nvidia--audio-flamingo-next-think-hf/snapshots/5634886e", None, "think"),
        ("/x/models--nvidia--audio-flamingo-next-hf/snapshots/think", None, "instruct"),
        ("/models/rethinking", {}, "instruct"),
        ("/models/anything", {"afnext_variant": "nano"}, "nano"),
    ],
)
def test_detection(source: str, config: dict | None, name: str) -> None:
    assert detect_variant(source, config).name == name


def test_the_cards_words() -> None:
    instruct = get_variant("instruct")
    assert instruct.prompt("transcribe") == "Transcribe the input speech."
    assert (
        instruct.prompt("translate", source="French", target="German")
        == "Translate any speech you hear from French into German."
    )
    assert instruct.prompt("translate") == "Translate any speech you hear into English."
    assert set(instruct.prompts) == set(TASKS)
    sampled = get_variant("audio-flamingo-3").sampling
    assert (sampled.temperature, sampled.top_p, sampled.top_k) == (0.7, 0.8, 20)
    assert [VARIANTS[v].sampling.max_tokens for v in ("instruct", "think", "captioner")] == [
        1024,
        4096,
        2048,
    ]


def test_braces_in_a_language_are_text() -> None:
    text = get_variant("instruct").prompt("translate", source="{target}", target="{0.__class__}")
    assert text == "Translate any speech you hear from {target} into {0.__class__}."


def test_what_nano_was_not_taught_is_refused() -> None:
    with pytest.raises(
        ChatError, match="nano is not trained for 'translate'; it knows: transcribe"
    ):
        get_variant("nano").prompt("translate")
    with pytest.raises(ChatError, match="knows no task called 'sing'"):
        get_variant("instruct").prompt("sing")
    with pytest.raises(ChatError, match="unknown variant"):
        get_variant("medium")
    with pytest.raises(ChatError, match="unknown variant"):
        detect_variant("x", {"afnext_variant": "medium"})


@pytest.mark.parametrize("name", VARIANTS)
def test_the_engine_takes_every_sampling(name: str) -> None:
    """The two packages do not know each other, so the names are held together here."""
    GenerationParams(**dataclasses.asdict(VARIANTS[name].sampling))
