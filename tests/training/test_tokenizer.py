"""The tokenizer: any text comes back byte for byte, times are few tokens, the template is ChatML."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from afnext.training.data.tokenizer import SPECIALS, TIMES, save_tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["a bell rings", "bell <t>1.2-2.5</t>, siren <t>13.0-14.0</t>.", " siren, bell"] * 20
    return train_tokenizer(texts, 330)


def test_any_text_survives(tokenizer: Tokenizer) -> None:
    @given(st.text())
    def check(text: str) -> None:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text

    check()


def test_seconds_with_tenths_are_single_tokens_and_tens_stand_before_them(
    tokenizer: Tokenizer,
) -> None:
    tokens = tokenizer.encode("bell <t>1.2-60.0</t>, siren").tokens
    assert tokens == ["bell", "Ġ", "<t>", "1.2", "-", "6", "0.0", "</t>", ",", "Ġsiren"]
    ids = [tokenizer.token_to_id(t) for t in TIMES]
    assert ids == list(range(ids[0], ids[0] + 100))
    assert len(tokenizer.encode("".join(SPECIALS)).ids) == len(SPECIALS)
    answer = "At <t>290.1-290.4</t>"
    assert tokenizer.decode(tokenizer.encode(answer).ids) == answer


def test_in_digits_a_time_has_no_token_and_all_else_is_the_same(tokenizer: Tokenizer) -> None:
    texts = [
        "a bell rings",
        "bell <t>1.2-2.5</t>, siren <t>13.0-14.0</t>. 13 13 13",
        " siren, bell",
    ] * 20
    digits = train_tokenizer(texts, 330, "digits")
    plain = train_tokenizer(texts, 330)
    assert not any(digits.token_to_id(time) for time in TIMES)
    ids = plain.get_vocab()
    assert digits.get_vocab() == {token: ids[token] for token in ids if token not in TIMES}
    wanted = [
        "bell",
        "Ġ",
        "<t>",
        "1",
        "3",
        ".",
        "0",
        "-",
        "1",
        "4",
        ".",
        "5",
        "</t>",
        ",",
        "Ġsiren",
    ]
    assert digits.encode("bell <t>13.0-14.5</t>, siren").tokens == wanted
    for text in ("bell, bell rings a siren", "".join(SPECIALS)):
        assert digits.encode(text).ids == plain.encode(text).ids
    answer = "At <t>290.1-290.4</t>, 12 of 130."
    assert digits.decode(digits.encode(answer).ids) == answer


def test_transformers_reads_it_and_renders_turns_the_same(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_tokenizer(tokenizer, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    content = [{"type": "text", "text": "When?"}, {"type": "audio", "path": "x.wav"}]
    text = theirs.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\n<sound>When?<|im_end|>\n<|im_start|>assistant\n"
    assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
    plain = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert plain == "<|im_start|>user\nHi<|im_end|>\n"
