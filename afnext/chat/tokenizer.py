"""Text to ids and back, by the ``tokenizer.json`` of a model folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afnext.chat.files import MAX_JSON_BYTES, read_json, read_text
from afnext.errors import ChatError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

    from afnext.chat.streaming import StreamDecoder

CONTROL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


class Tokenizer:
    """A model's tokenizer and the ids that mean something to it.

    Attributes:
        audio_token, audio_id: the placeholder of one 40 ms audio token ("" and None: the model hears
            nothing).
        audio_bos, audio_eos: the tokens around a recording, "" in the Audio Flamingo 3 layout.
        eos_ids: what ends an answer.
        pad_id: padding, or None.
        special_tokens: the named ones ("bos_token", "eos_token", ...), as templates read them.
    """

    def __init__(
        self,
        source: str,
        *,
        config: Mapping[str, Any] | None = None,
        model_config: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Args are the contents of ``tokenizer.json`` (text), ``tokenizer_config.json``,
        ``config.json`` and ``generation_config.json`` (objects).

        Raises:
            ChatError: the tokenizer is malformed, or an id lies outside of it.
        """
        from tokenizers import Tokenizer as Backend

        config, model_config = config or {}, model_config or {}
        try:
            self._backend: Backend = Backend.from_str(source)
            self._definition: dict[str, Any] = json.loads(source)
        except Exception as error:  # the library raises plain Exception
            raise ChatError(f"tokenizer.json cannot be read: {str(error)[:200]}") from None
        self._backend.no_truncation()
        self._backend.no_padding()
        self._added: dict[str, int] = {
            t.content: i for i, t in self._backend.get_added_tokens_decoder().items()
        }
        self._specials = {
            t.content for t in self._backend.get_added_tokens_decoder().values() if t.special
        }
        self._special_ids = {self._added[t] for t in self._specials}
        self._control: dict[str, tuple[str, ...]] = {}
        self.special_tokens = {
            name: text
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
            if (text := _token_text(config.get(name)))
        }
        self.audio_token = self._named(model_config, config, "audio_token", "<sound>")
        self.audio_id = self.token_id(self.audio_token)
        self.audio_bos = self._named(model_config, config, "audio_bos_token", "<|sound_bos|>")
        self.audio_eos = self._named(model_config, config, "audio_eos_token", "<|sound_eos|>")
        # Audio Flamingo 3 has both tokens in its vocabulary, but never saw them.
        if model_config.get("model_type") == "audioflamingo3" or not (
            self.audio_bos and self.audio_eos
        ):
            self.audio_bos = self.audio_eos = ""
        self.pad_id = self.token_id(self.special_tokens.get("pad_token", ""))
        self.eos_ids = self._ends(model_config, generation_config or {})

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read the tokenizer of a model folder.

        Raises:
            ChatError: there is no ``tokenizer.json``, or a file is malformed.
        """
        folder = Path(folder)
        source = read_text(folder / "tokenizer.json", MAX_JSON_BYTES)
        if source is None:
            raise ChatError(
                f"{folder} has no tokenizer.json: a model folder needs one "
                "(transformers' save_pretrained of a fast tokenizer writes it)"
            )
        return cls(
            source,
            config=read_json(folder / "tokenizer_config.json"),
            model_config=read_json(folder / "config.json"),
            generation_config=read_json(folder / "generation_config.json"),
        )

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def decodes_bytes(self) -> bool:
        """Whether pieces stand for bytes (GPT-2's alphabet), so that each decodes by itself."""
        decoder = self._definition.get("decoder") or {}
        return decoder.get("type") == "ByteLevel"

    def agrees_with(self, other: Tokenizer) -> bool:
        """Whether every id stands for the same token in both."""
        ours, theirs = (t._backend.get_vocab(with_added_tokens=True) for t in (self, other))
        return ours == theirs

    def token_id(self, text: str) -> int | None:
        """The id of one token, or None."""
        return self._backend.token_to_id(text) if text else None

    def token(self, id: int) -> str | None:
        """The token of an id, as the vocabulary writes it, or None."""
        return self._backend.id_to_token(id) if 0 <= id < 1 << 32 else None

    def is_special(self, id: int) -> bool:
        """Whether decoding leaves the token out."""
        return id in self._special_ids

    def encode(self, text: str) -> list[int]:
        """Ids of text in which control tokens count: what the program itself writes."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of text in which nothing is a control token: what somebody else wrote.

        Raises:
            ChatError: the vocabulary itself turns the text into a control token.
        """
        control = self.control_tokens()
        mark = unused_mark([text])
        broken = break_tokens(text, control_pattern(control), mark)
        ids = [id for piece in broken.split(mark) for id in self.encode(piece)]
        forged = {self._added[token] for token in control} & set(ids)
        if forged:
            raise ChatError(f"the text stands for the control token {self.token(forged.pop())!r}")
        return ids

    def control_tokens(self, template: str = "") -> tuple[str, ...]:
        """What must not come from a user's text: special tokens, those of ChatML and of audio, and
        every added token that the chat template writes. Other added tokens (nano's times, say) are
        ordinary text."""
        if template not in self._control:
            ours = {
                *self._specials,
                *CONTROL_TOKENS,
                self.audio_token,
                self.audio_bos,
                self.audio_eos,
            }
            found = tuple(t for t in self._added if t in ours or t in template)
            self._control[template] = found
        return self._control[template]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of ids; ids outside the vocabulary are left out.

        Raises:
            ChatError: a negative id.
        """
        try:
            return self._backend.decode(list(ids), skip_special_tokens=skip_special)
        except (OverflowError, TypeError) as error:
            raise ChatError(f"decode: ids must be integers >= 0: {error}") from None

    def stream(self) -> StreamDecoder:
        """A decoder for ids that come one at a time."""
        from afnext.chat.streaming import StreamDecoder

        return StreamDecoder(self)

    def _named(
        self, model_config: Mapping[str, Any], config: Mapping[str, Any], name: str, usual: str
    ) -> str:
        """A token's text: by the model's id for it, else the tokenizer's name, else the usual one."""
        id = model_config.get(f"{name}_id")
        if id is not None:
            text = self.token(id) if isinstance(id, int) else None
            if text is None:
                raise ChatError(f"config.json: {name}_id {id!r} is not in the tokenizer")
            return text
        text = _token_text(config.get(name)) or usual
        return text if self.token_id(text) is not None else ""

    def _ends(
        self, model_config: Mapping[str, Any], generation_config: Mapping[str, Any]
    ) -> frozenset[int]:
        found: list[Any] = []
        text_config = model_config.get("text_config")
        for source in (generation_config, model_config, text_config):
            value = source.get("eos_token_id") if isinstance(source, Mapping) else None
            found += value if isinstance(value, list) else [value]
        found += [self.token_id(self.special_tokens.get("eos_token", ""))]
        found += [self.token_id("<|im_end|>")]
        ends = [id for id in found if id is not None]
        for id in ends:
            if not isinstance(id, int) or isinstance(id, bool) or id < 0:
                raise ChatError(f"eos_token_id must be an integer >= 0, got {id!r}")
        return frozenset(ends)


def control_pattern(tokens: Iterable[str]) -> re.Pattern[str]:
    """Matches any of ``tokens``, the longest first; with none, nothing."""
    longest = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")


def break_tokens(text: str, pattern: re.Pattern[str], mark: str) -> str:
    """Put ``mark`` into every control token of ``text``, behind its first character.

    What is encoded by the pieces between marks then holds none, and a template that cuts the text
    apart cannot mend one.

    Raises:
        ChatError: a control token of one character, which cannot be broken.
    """
    while match := pattern.search(text):
        if len(match.group()) == 1:
            raise ChatError(f"the text holds the control token {match.group()!r}")
        text = pattern.sub(lambda m: m.group()[0] + mark + m.group()[1:], text)
    return text


def unused_mark(texts: Sequence[str]) -> str:
    """A private-use character that is in none of ``texts``.

    Raises:
        ChatError: all of them are.
    """
    used = {c for text in texts for c in text if "\ue000" <= c <= "\uf8ff"}
    mark = next((c for c in map(chr, range(0xF8FF, 0xDFFF, -1)) if c not in used), None)
    if mark is None:
        raise ChatError("the text uses every private-use character of Unicode")
    return mark


def _token_text(token: Any) -> str:
    """A token in a config is its text or an object with ``content``."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else ""
