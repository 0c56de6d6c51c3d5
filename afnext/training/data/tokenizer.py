"""nano's tokenizer: byte-level BPE over the training set's texts, with one token for seconds and tenths.

Every text encodes (all 256 bytes are pieces) and decodes to the same bytes. "0.0" to "9.9" are single tokens:
measured against digits, they halve the onset error at equal training time. "124.3" is "12" and "4.3", so that
what is learnt of times in a short recording holds in a long one. For comparison there is the other way too,
with a token for each digit, as Qwen2.5's tokenizer has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<sound>", "<|sound_bos|>", "<|sound_eos|>"),
)
TIMES = tuple(f"{k / 10:.1f}" for k in range(100))
ROLES = ("system", "user", "assistant")
_TIMED = re.compile(r"</?t>|\d\.\d")

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'audio' -%}
{{- '<sound>' -}}
{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{{- part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def train_tokenizer(
    texts: Iterable[str], pieces: int = 1024, times: Literal["tokens", "digits"] = "tokens"
) -> Tokenizer:
    """Train on ``texts`` without their times; ids: pieces, specials, ``<t>``, ``</t>``, the times.

    Where ``times`` are ``"digits"`` there are none at the end, and every digit is a token of its own; pieces
    and other ids are the same.
    """
    tokenizer = Tokenizer(models.BPE())
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = bytes_of_words
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    roles = (f"{role}\n" for role in ROLES for _ in range(1000))
    plain = (_TIMED.sub("\n", text) for text in texts)
    tokenizer.train_from_iterator((text for part in (roles, plain) for text in part), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    timed = ["<t>", "</t>"]
    if times == "tokens":
        timed += TIMES
    else:
        each = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([each, bytes_of_words])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in timed])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``chat_template.jinja``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "audio_token": "<sound>",
        "audio_bos_token": "<|sound_bos|>",
        "audio_eos_token": "<|sound_eos|>",
        "padding_side": "left",
        "model_max_length": 65536,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
