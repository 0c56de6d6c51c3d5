"""The tokenizer: any text comes back byte for byte, times are one token, the template is ChatML."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from afnext.training.data import Vocabulary
from afnext.training.tokenizer import SPECIALS, save_tokenizer


def test_any_text_survives(vocab: Vocabulary) -> None:
    @given(st.text())
    def check(text: str) -> None:
        ids = vocab.tokenizer.encode(text).ids
        assert vocab.tokenizer.decode(ids, skip_special_tokens=False) == text

    check()


def test_times_and_classes_are_single_tokens(vocab: Vocabulary) -> None:
    tokens = vocab.tokenizer.encode("bell <t>1.2-60.0</t>, siren").tokens
    assert tokens == ["bell", "Ġ", "<t>", "1.2", "-", "60.0", "</t>", ",", "Ġsiren"]
    assert vocab.times.tolist() == list(range(int(vocab.times[0]), int(vocab.times[0]) + 601))
    assert len(vocab.tokenizer.encode("".join(SPECIALS)).ids) == len(SPECIALS)
    assert vocab.tokenizer.decode(vocab.encode("<|im_end|>At <t>0.1</t>")) == "At <t>0.1</t>"


def test_a_question_is_encoded_as_the_template_renders_it(
    vocab: Vocabulary, tmp_path: Path
) -> None:
    """transformers' rendering of a turn with audio equals prefix, placeholders, close and question."""
    save_tokenizer(vocab.tokenizer, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    content = [{"type": "text", "text": "When?"}, {"type": "audio", "path": "x.wav"}]
    text = theirs.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\n<sound>When?<|im_end|>\n<|im_start|>assistant\n"
    expanded = text.replace("<sound>", "<|sound_bos|><sound><sound><|sound_eos|>")
    sound = vocab.encode("<sound>")
    ours = [*vocab.prefix, *sound, *sound, *vocab.close, *vocab.question("When?")]
    assert theirs(expanded)["input_ids"] == ours
    plain = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert plain == "<|im_start|>user\nHi<|im_end|>\n"
