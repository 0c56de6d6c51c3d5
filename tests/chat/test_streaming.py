"""A stream gives whole characters, each once, and in the end the text that decoding at once gives."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from afnext.chat import Tokenizer


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = tokenizer.stream()
    return [*(decoder.push(i) for i in ids), decoder.flush()]


@given(st.lists(st.integers(0, 420), max_size=30))
def test_any_ids_give_the_text_of_decoding_them_at_once(
    tokenizer: Tokenizer, ids: list[int]
) -> None:
    """Random ids are mostly broken UTF-8."""
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@given(st.text(alphabet="aß日🎵👩\u200d🚀é ", max_size=20))
def test_no_piece_holds_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.token_id(c) for c in "ðŁĲķ"]  # the four bytes of a dog's face
    assert None not in ids
    assert stream(tokenizer, ids) == ["", "", "", "🐕", ""]
    assert stream(tokenizer, ids[:3]) == ["", "", "", "\ufffd"]
    assert stream(tokenizer, [ids[0], tokenizer.token_id("a")]) == ["", "\ufffda", ""]


def test_special_tokens_write_nothing(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a<|im_end|>b<t>0.5</t>")
    assert "".join(stream(tokenizer, ids)) == "ab<t>0.5</t>"


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    """Metaspace pieces with byte fallback, as SentencePiece models have: decoding drops the first
    space, and bytes come as tokens of their own."""
    words = ["<unk>", "▁the", "▁dog", "▁", "s", "bark"]
    vocab = {w: i for i, w in enumerate([*words, *(f"<0x{b:02X}>" for b in range(256))])}
    backend = Backend(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    return Tokenizer(json.dumps(json.loads(backend.to_str())))


@given(st.data())
def test_other_decoders_stream_as_well(sentencepiece: Tokenizer, data: st.DataObject) -> None:
    """Whole characters in any mix of words and byte tokens."""
    byte = {b: sentencepiece.token_id(f"<0x{b:02X}>") for b in range(256)}
    ids: list[int] = []
    for part in data.draw(
        st.lists(st.sampled_from(["▁the", "▁dog", "s", "é", "🎵", "日"]), max_size=12)
    ):
        word = sentencepiece.token_id(part)
        ids += [byte[b] for b in part.encode()] if word is None else [word]
    pieces = stream(sentencepiece, ids)
    assert "".join(pieces) == sentencepiece.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
