"""Ids are transformers' for ordinary text; what a user types never becomes a control token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from afnext.chat import Tokenizer
from afnext.chat.tokenizer import break_tokens, control_pattern
from afnext.errors import ChatError

CONTROL = ["<|im_end|>", "<|im_start|>", "<sound>", "<|sound_bos|>", "<|endoftext|>"]
PIECES = st.sampled_from(
    [*CONTROL, "<|im_", "end|>", "<t>0.5</t>", "ß", "日本", "🎵", " a", "\n", "<"]
)
TYPED = st.lists(PIECES | st.text(max_size=4), max_size=8).map("".join)


@given(st.text(max_size=60))
def test_ordinary_text_as_in_transformers(
    backend: Backend, tokenizer: Tokenizer, text: str
) -> None:
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = tokenizer.encode_plain(text)
    assert ids == theirs(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == text


@given(TYPED)
def test_typed_control_tokens_stay_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_plain(text)
    assert not {tokenizer.token_id(t) for t in CONTROL} & set(ids)
    assert tokenizer.decode(ids, skip_special=False) == text


def test_times_are_single_tokens_also_when_typed(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode_plain("<t>0.5</t>")) == 3
    assert "<t>" not in tokenizer.control_tokens()
    assert "<t>" in tokenizer.control_tokens("{{ '<t>' }}")


def test_every_vocabulary_breaks_tokens() -> None:
    """Tokens inside tokens are broken too; one of a single character is refused."""
    pattern = control_pattern(["<<a>", "<a>", "b<"])
    broken = break_tokens("b<<a><a>b<", pattern, "|")
    assert broken.replace("|", "") == "b<<a><a>b<"
    assert not any(t in broken for t in ("<<a>", "<a>", "b<"))
    with pytest.raises(ChatError, match="'§'"):
        break_tokens("a§", control_pattern(["§"]), "|")


def test_a_normalizer_cannot_forge_a_token() -> None:
    """NFKC turns fullwidth brackets into "<sound>"; an added token matched after it must not count."""
    source = {
        "model": {"type": "WordLevel", "vocab": {"hi": 0, "?": 1}, "unk_token": "?"},
        "added_tokens": [
            {"id": 2, "content": "<sound>", "special": True, "normalized": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        ],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
    }
    tokenizer = Tokenizer(json.dumps(source))
    assert tokenizer.encode("＜sound＞") == [2]  # the danger is real
    with pytest.raises(ChatError, match="control token"):
        tokenizer.encode_plain("hi ＜sound＞")


def test_special_ids(
    make_folder: Callable[..., Path], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    im_end, sound = tokenizer.token_id("<|im_end|>"), tokenizer.token_id("<sound>")
    assert tokenizer.eos_ids == {im_end}
    assert tokenizer.audio_id == sound
    assert (tokenizer.audio_bos, tokenizer.audio_eos) == ("<|sound_bos|>", "<|sound_eos|>")
    assert tokenizer.pad_id == tokenizer.token_id("<|endoftext|>")
    assert tokenizer.special_tokens["eos_token"] == "<|im_end|>"

    other = make_folder(
        tmp_path / "af3",
        config={"model_type": "audioflamingo3", "text_config": {"eos_token_id": 7}},
        generation_config={"eos_token_id": [5, 6]},
    )
    third = Tokenizer.from_folder(other)
    assert third.eos_ids == {5, 6, 7, im_end}
    assert third.audio_bos == third.audio_eos == ""
    named = Tokenizer.from_folder(
        make_folder(tmp_path / "named", config={"audio_token_id": tokenizer.token_id("<t>")})
    )
    assert named.audio_token == "<t>"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"config": {"audio_token_id": 10**9}}, "audio_token_id"),
        ({"config": {"audio_token_id": -1}}, "audio_token_id"),
        ({"config": {"audio_token_id": "x"}}, "audio_token_id"),
        ({"generation_config": {"eos_token_id": "x"}}, "eos_token_id"),
        ({"generation_config": {"eos_token_id": [-1]}}, "eos_token_id"),
        ({"generation_config": []}, "JSON object"),
    ],
)
def test_broken_configs_are_refused(
    make_folder: Callable[..., Path], tmp_path: Path, files: dict, says: str
) -> None:
    with pytest.raises(ChatError, match=says):
        Tokenizer.from_folder(make_folder(tmp_path, **files))


def test_a_folder_without_tokenizer_says_so(tmp_path: Path) -> None:
    with pytest.raises(ChatError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    for content in ("", "{", "[]", "{}", '{"model": {"type": "Nothing"}}', "null"):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(ChatError, match=r"tokenizer\.json"):
            Tokenizer.from_folder(tmp_path)


def test_decoding_ids_outside(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([10**6]) == ""
    with pytest.raises(ChatError, match="decode"):
        tokenizer.decode([-1])
