"""nano's tokenizer: byte-level BPE over the questions and answers, with one token for each time.

Every text encodes (all 256 bytes are pieces) and decodes to the same bytes. The times "0.0" to "60.0"
are single tokens: measured against digits, they halve the onset error at equal training time.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from afnext.training.lexicon import UNHEARD, WORDS
from afnext.training.synthesis.scenes import place
from afnext.training.tasks import exchanges, seconds

SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<sound>", "<|sound_bos|>", "<|sound_eos|>"),
)
TIMES = tuple(seconds(k / 10) for k in range(601))
_TIMED = re.compile(r"</?t>|\d+\.\d")

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


def corpus(clips: int, seed: int) -> list[str]:
    """Questions and answers about random scenes, without times."""
    rng, scenes = random.Random(seed), np.random.default_rng(seed)
    texts = [
        *("user\n", "assistant\n", "system\n") * clips,
        *WORDS,
        *(f"There is no {n}." for n in UNHEARD),
    ]
    for _ in range(clips):
        for exchange in exchanges(place(float(scenes.uniform(2, 30)), scenes), 6, rng):
            texts += [_TIMED.sub("\n", exchange.question), _TIMED.sub("\n", exchange.answer)]
    return texts


def train_tokenizer(pieces: int = 1024, clips: int = 5000, seed: int = 0) -> Tokenizer:
    """Train on :func:`corpus`; ids are the pieces, then the specials, ``<t>``, ``</t>`` and the times."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=pieces,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(clips, seed), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIALS])
    timed = ("<t>", "</t>", *TIMES)
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
        "model_max_length": 8192,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
