"""Our rendering is the release's, and a folder's own template renders as transformers renders it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from afnext.chat import ChatTemplate, Message, get_variant, render
from afnext.errors import ChatError

# The text of the published conversion script, typed out once more so that a slip in the table shows.
SYSTEM = (
    "You are Audio Flamingo-Next, a multimodal assistant for language and audio. On each turn you "
    "receive an optional audio clip which may contain speech, music, or ambient sounds and optional "
    "text, you will receive at least one or both; use your world knowledge and reasoning to help the "
    "user with any task. Interpret the entirety of the content of any input audio—regardless of "
    "whether the user calls it audio, speech, music, or sound."
)
HEAD = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
CONVERSATIONS = {
    "single": [Message("user", "When does the dog bark?", ["a.wav"])],
    "text only": [Message("user", "Hello\n")],
    "audio only": [Message("user", audio="a.wav")],
    "multi-turn": [
        Message("user", "What is it?", ["a.wav"]),
        Message("assistant", " A dog. "),
        Message("user", "And\n\nthis?", ["b.wav"]),
    ],
    "system": [Message("system", "Be brief."), Message("user", "Hi", ["a.wav"])],
}
"""At most one recording a turn: what the released template can say."""

# Templates in the manner of the released ones (text of ours), and of others that people bring.
FOLDER_TEMPLATES = {
    "processor": (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nSYS<|im_end|>\n{% endif %}"
        "{% for m in messages if m['content'] is not none %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% set seen = namespace(audio=False, text='') %}{% for part in m['content'] %}"
        "{% if part.get('type') == 'audio' %}{% set seen.audio = True %}"
        "{% elif 'text' in part %}{% set seen.text = seen.text + part['text'] %}{% endif %}"
        "{% endfor %}{% if seen.audio %}{{ '<sound>' }}{% endif %}{{ seen.text }}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "tokenizer": (
        "{{ bos_token | default('') }}{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' ~ eos_token }}"
        "{% endfor %}"
    ),
    "nano": (
        "{%- for message in messages -%}\n{{- '<|im_start|>' + message['role'] + '\\n' -}}\n"
        "{%- if message['content'] is string -%}\n{{- message['content'] -}}\n{%- else -%}\n"
        "{%- for part in message['content'] if part['type'] == 'audio' -%}\n"
        "{{- '<sound>' -}}\n{%- endfor -%}\n"
        "{%- for part in message['content'] if part['type'] == 'text' -%}\n"
        "{{- part['text'] -}}\n{%- endfor -%}\n{%- endif -%}\n{{- '<|im_end|>\\n' -}}\n"
        "{%- endfor -%}\n{%- if add_generation_prompt -%}\n{{- '<|im_start|>assistant\\n' -}}\n"
        "{%- endif -%}\n"
    ),
    "busy": (
        "{%- macro turn(m) %}{{ m.role | upper }}: {{ caller() }}{% endmacro -%}\n"
        "{%- for m in messages[:] %}\n"
        "  {%- if m.role == 'other' %}{{ raise_exception('no') }}{% endif %}\n"
        "  {%- if m.content is string %}{% set text = m.content %}\n"
        "  {%- else %}{% set text = m.content | selectattr('type', 'equalto', 'text')\n"
        "      | map(attribute='text') | join(' ') %}{% endif %}\n"
        "  {%- call turn(m) %}{% generation %}{{ text.strip().replace('a', '[a]') | trim }}"
        "{% endgeneration %}{{ '%s-%d' % ('n', loop.index0) }} {{ '{}|{:.1f}'.format('x', 2.25) }}"
        "{{ m | tojson(indent=2) }}{{ ', '.join(['p', 'q'] * 2) }}{% endcall %}\n"
        "  {%- if loop.last %}{% break %}{% endif %}\n"
        "{% endfor %}{{ dict(a=1) | items | list }}{{ range(3) | sum }}{{ [1, 2] | length }}"
        "{{ strftime_now('%Y') | length }}{% for k, v in {'k': 'v'}.items() %}{{ k ~ v }}{% endfor %}"
    ),
}


def test_the_exact_text_of_the_release() -> None:
    assert render(CONVERSATIONS["single"]) == (
        HEAD + "<|im_start|>user\n<sound>When does the dog bark?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(CONVERSATIONS["multi-turn"]) == (
        HEAD + "<|im_start|>user\n<sound>What is it?<|im_end|>\n"
        "<|im_start|>assistant\n A dog. <|im_end|>\n"
        "<|im_start|>user\n<sound>And\n\nthis?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(CONVERSATIONS["system"]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<sound>Hi<|im_end|>\n<|im_start|>assistant\n"
    )
    several = [Message("user", "Same song?", ["a", "b", "c"])]
    assert render(several) == (
        HEAD
        + "<|im_start|>user\n<sound><sound><sound>Same song?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render([Message("user", "Hi")], add_generation_prompt=False) == (
        HEAD + "<|im_start|>user\nHi<|im_end|>\n"
    )


def test_other_families_have_their_own_system_prompt() -> None:
    template = ChatTemplate(default_system=get_variant("audio-flamingo-3").system_prompt)
    assert template.render([Message("user", "Hi")]).startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    )
    assert "regardlenss" in str(get_variant("music-flamingo").system_prompt)
    assert ChatTemplate().render([Message("user", "Hi")]).startswith("<|im_start|>user\n")


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("kind", FOLDER_TEMPLATES)
def test_a_folders_template_renders_as_in_transformers(
    backend: Backend, kind: str, name: str
) -> None:
    messages = CONVERSATIONS[name]
    if kind == "tokenizer":  # reads strings only: the audio token stands in the text
        plain = [{"role": m.role, "content": "<sound>" * len(m.audio) + m.text} for m in messages]
    else:
        plain = [
            {
                "role": m.role,
                "content": [{"type": "audio"}] * len(m.audio)
                + ([{"type": "text", "text": m.text}] if m.text else [])
                if m.audio
                else m.text,
            }
            for m in messages
        ]
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        chat_template=FOLDER_TEMPLATES[kind],
    )
    ours = ChatTemplate(FOLDER_TEMPLATES[kind], variables={"eos_token": "<|im_end|>"})
    for add in (True, False):
        expected = theirs.apply_chat_template(plain, tokenize=False, add_generation_prompt=add)
        assert ours.render(messages, add_generation_prompt=add) == expected


def test_where_a_folder_keeps_its_template(tmp_path: Path) -> None:
    hi = [Message("user", "hi")]
    shown = "{{ messages[0].content }}"
    assert "<|im_start|>" in ChatTemplate.from_folder(tmp_path).render(hi)
    several = [
        {"name": "tools", "template": "no"},
        {"name": "default", "template": "three " + shown},
    ]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert ChatTemplate.from_folder(tmp_path).render(hi) == "three hi"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "two " + shown}))
    assert ChatTemplate.from_folder(tmp_path).render(hi) == "two hi"
    (tmp_path / "chat_template.jinja").write_text("one " + shown)
    assert ChatTemplate.from_folder(tmp_path).render(hi) == "one hi"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", b"\xff\xfe"),
        ("chat_template.jinja", b"x" * 100_001),
        ("chat_template.jinja", b"x" * 400_001),
        ("chat_template.json", b"{"),
        ("tokenizer_config.json", b"[" * 100_000),
        ("tokenizer_config.json", b"[]"),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ChatError):
        ChatTemplate.from_folder(tmp_path)


def test_too_long_a_conversation_is_refused() -> None:
    with pytest.raises(ChatError, match="characters"):
        render([Message("user", "a" * 1_000_001)])
    assert "a" * 1_000_000 in render([Message("user", "a" * 1_000_000)])
