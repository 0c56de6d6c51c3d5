"""The text that a model is given: a folder's own chat template, or the release's rendering."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afnext.chat.files import read_json, read_text
from afnext.chat.messages import Message
from afnext.errors import ChatError

if TYPE_CHECKING:
    from jinja2 import Template

MAX_TEMPLATE_CHARACTERS = 100_000
MAX_CONVERSATION_CHARACTERS = 1_000_000

DEFAULT_TEMPLATE = """\
{% if default_system and messages[0].role != 'system' %}
{{ '<|im_start|>system\\n' + default_system + '<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}
{{ message.content }}
{%- else %}
{% for part in message.content if part.type == 'audio' %}
{{ audio_token }}
{%- endfor %}
{% for part in message.content if part.type == 'text' %}
{{ part.text }}
{%- endfor %}
{% endif %}
{{ '<|im_end|>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""ChatML, audio before text, a system prompt unless one is given: the rendering of the released
AF-Next, Music Flamingo and Audio Flamingo 3 (transformers' conversion scripts), save that several
recordings in a turn each get their place."""

_PROBE = "probetext"


class _Stopped(ChatError):
    """The template spent its budget; a second try would spend another."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template, compiled in the sandbox when it is first needed.

    Attributes:
        source: the Jinja text, at most 100,000 characters.
        default_system: what :data:`DEFAULT_TEMPLATE` says as the system; a folder's template brings
            its own.
        variables: further names a template may read, e.g. ``bos_token``.
    """

    source: str = DEFAULT_TEMPLATE
    default_system: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.source) > MAX_TEMPLATE_CHARACTERS:
            raise ChatError(
                f"the chat template has {len(self.source):,} characters, more than the "
                f"{MAX_TEMPLATE_CHARACTERS:,} allowed"
            )

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        default_system: str | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> ChatTemplate:
        """The template of a model folder, in transformers' order: ``chat_template.jinja``,
        ``chat_template.json``, ``tokenizer_config.json``; :data:`DEFAULT_TEMPLATE` where none has one.

        Raises:
            ChatError: a file that cannot be read, or a template that is too long.
        """
        folder = Path(folder)
        source = read_text(folder / "chat_template.jinja", 4 * MAX_TEMPLATE_CHARACTERS)
        for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            if source is None:
                source = _default_of(read_json(folder / name).get("chat_template"))
        return cls(
            DEFAULT_TEMPLATE if source is None else source, default_system, dict(variables or {})
        )

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        audio_token: str = "<sound>",
    ) -> str:
        """The conversation as text, with ``audio_token`` where a template puts a recording.

        Raises:
            ChatError: the template is malformed, refuses the conversation, runs too long, writes too
                much or reaches for what the sandbox denies.
        """
        characters = sum(len(m.text) for m in messages)
        if characters > MAX_CONVERSATION_CHARACTERS:
            raise ChatError(
                f"the conversation has {characters:,} characters, more than the "
                f"{MAX_CONVERSATION_CHARACTERS:,} allowed"
            )
        conversation = [self._plain(message, audio_token) for message in messages]
        return self._render(conversation, add_generation_prompt, audio_token)

    def _plain(self, message: Message, audio_token: str) -> dict[str, Any]:
        """The message as a template sees it; ``audio`` parts say only that there is a recording."""
        if message.audio and not self._takes_parts:
            content: Any = audio_token * len(message.audio) + message.text
        elif message.audio or not self._takes_strings:
            content = [{"type": "audio"} for _ in message.audio]
            if message.text:
                content.append({"type": "text", "text": message.text})
        else:
            content = message.text
        return {"role": message.role, "content": content}

    @functools.cached_property
    def _takes_parts(self) -> bool:
        """Whether the template reads content given as a list; a tokenizer's own often does not."""
        return self._shows([{"type": "text", "text": _PROBE}])

    @functools.cached_property
    def _takes_strings(self) -> bool:
        return self._shows(_PROBE) or not self._takes_parts

    def _shows(self, content: Any) -> bool:
        try:
            text = self._render([{"role": "user", "content": content}], True, "<sound>")
        except _Stopped:
            raise
        except ChatError:
            return False
        return _PROBE in text and "'type'" not in text

    def _render(
        self, conversation: list[dict[str, Any]], add_generation_prompt: bool, audio_token: str
    ) -> str:
        from jinja2.exceptions import SecurityError, TemplateError

        from afnext.chat.sandbox import Budget, TemplateLimit, render

        variables = {
            **self.variables,
            "messages": conversation,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "audio_token": audio_token,
            "default_system": self.default_system,
        }
        try:
            return render(_compile(self.source), variables, Budget())
        except TemplateLimit as error:
            raise _Stopped(f"the chat template was stopped: {error}") from None
        except SecurityError as error:
            raise ChatError(f"the chat template is not allowed: {error}") from None
        except TemplateError as error:
            raise ChatError(f"the chat template fails: {error}") from None
        except Exception as error:
            # Whatever a stranger's template provokes: TypeError, RecursionError, SyntaxError...
            kind = type(error).__name__
            raise ChatError(f"the chat template fails: {kind}: {str(error)[:200]}") from None


def render(
    messages: Sequence[Message],
    template: ChatTemplate | None = None,
    *,
    add_generation_prompt: bool = True,
) -> str:
    """The conversation as the model reads it, by default as the released AF-Next was trained.

    This is text to look at; :func:`afnext.chat.build_prompt` makes the ids, and keeps what users type
    from becoming control tokens.

    Raises:
        ChatError: see :meth:`ChatTemplate.render`.
    """
    if template is None:
        from afnext.chat.variants import AF_NEXT_SYSTEM_PROMPT

        template = ChatTemplate(default_system=AF_NEXT_SYSTEM_PROMPT)
    return template.render(messages, add_generation_prompt=add_generation_prompt)


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> Template:
    return _environment().from_string(source)


@functools.cache
def _environment() -> Any:
    from afnext.chat.sandbox import MeteredEnvironment

    return MeteredEnvironment()


def _default_of(templates: Any) -> str | None:
    """A config holds one template, or several by name."""
    if isinstance(templates, list):
        templates = {t.get("name"): t.get("template") for t in templates if isinstance(t, Mapping)}
    if isinstance(templates, Mapping):
        templates = templates.get("default")
    return templates if isinstance(templates, str) else None
