"""Output that is bound to a JSON schema, a choice or a regular expression, by llguidance.

A grammar is compiled once for a tokenizer; each request follows it with a state of its own, which says
before every token which ones may come.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from afnext.chat.streaming import piece_bytes
from afnext.chat.tokenizer import Tokenizer
from afnext.errors import AfnextError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

# White space that JSON may have anywhere, without end, is where a small model stays; as json.dumps has it.
_JSON: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
_REMEMBERED = 64


class ConstraintState:
    """How far one answer has followed its grammar.

    Attributes:
        finished: nothing but the end of the answer may follow.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    @property
    def finished(self) -> bool:
        return self._matcher.is_stopped()

    def fork(self) -> ConstraintState:
        """A copy that goes on by itself."""
        return ConstraintState(self._matcher.deep_copy(), self._vocabulary)

    def mask(self) -> Tensor:
        """Which tokens may come next, bool ``[vocabulary]``; tokens that end an answer are among them
        where the grammar is fulfilled. At least one is.

        Raises:
            RuntimeError: the grammar has grown too complex to follow.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise RuntimeError(f"constraint: {_first_line(self._matcher.get_error())}")
        allowed = np.zeros(self._vocabulary, bool)  # logits may be padded beyond the tokenizer
        known = np.unpackbits(bits, bitorder="little")[: self._vocabulary]
        allowed[: len(known)] = known
        return torch.from_numpy(allowed)

    def advance(self, token: int) -> None:
        """Take note of the next token.

        Raises:
            ValueError: ``mask`` does not hold it.
        """
        if not self._matcher.consume_token(token):
            raise ValueError(f"token: {token} is not allowed here by the constraint")


class Constraint:
    """A compiled grammar; ``Constraints`` makes it."""

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary

    def start(self) -> ConstraintState:
        """The state of a new answer; cheap."""
        return ConstraintState(self._matcher.deep_copy(), self._vocabulary)


class Constraints:
    """Compiles grammars for one tokenizer, and remembers the latest.

    Args:
        tokenizer: a byte-level one.
        vocabulary: length of the logits; not below the tokenizer's.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._backend: LLTokenizer | None = None
        self._compiled: Callable[[str, Any], Constraint] = lru_cache(_REMEMBERED)(self._compile)

    def compile(self, kind: str, source: Any) -> Constraint:
        """A grammar.

        Args:
            kind: "json_schema", "choice" or "regex".
            source: as ``GenerationParams`` keeps it: the schema as JSON text; a tuple of strings; a
                regular expression in the syntax of Rust's ``regex``, without look-around, that the whole
                answer matches.

        Raises:
            ValueError: naming ``kind``, where the source is wrong or asks for what llguidance cannot do;
                or the tokenizer is not byte-level.
            AfnextError: llguidance is not installed.
        """
        return self._compiled(kind, source)

    def _compile(self, kind: str, source: Any) -> Constraint:
        grammar = _grammar(kind, source)
        from llguidance import LLMatcher

        matcher = LLMatcher(self._llguidance(), grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"{kind}: {_reason(matcher.get_error())}")
        matcher.compute_bitmask()  # what comes of the grammar's start is shared by all requests
        if matcher.is_error():
            raise ValueError(f"{kind}: {_reason(matcher.get_error())}")
        return Constraint(matcher, self._vocabulary)

    def _llguidance(self) -> LLTokenizer:
        if self._backend is None:
            from llguidance import LLTokenizer, TokenizerWrapper

            if not self._tokenizer.decodes_bytes:
                raise ValueError("constraint: the model's tokenizer is not a byte-level one")
            self._backend = LLTokenizer(
                TokenizerWrapper(_Vocabulary(self._tokenizer)),
                eos_token=sorted(self._tokenizer.eos_ids),
            )
        return self._backend


def check(kind: str, source: Any) -> None:
    """Whether a grammar can be asked for, as far as that does not depend on a tokenizer.

    Args:
        kind, source: as of ``Constraints.compile``.

    Raises:
        ValueError, AfnextError: as ``Constraints.compile``.
    """
    grammar = _grammar(kind, source)
    from llguidance import LLMatcher

    if error := LLMatcher.validate_grammar(grammar):
        raise ValueError(f"{kind}: {_reason(error)}")


def _grammar(kind: str, source: Any) -> str:
    """As llguidance takes it."""
    try:
        from llguidance import LLMatcher
    except ImportError:
        raise AfnextError(f"{kind}: needs llguidance: pip install 'afnext[grammar]'") from None
    if kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(source, overrides=_JSON)
    if kind == "choice":
        return LLMatcher.grammar_from_lark(f"start: {' | '.join(map(json.dumps, source))}")
    return LLMatcher.grammar_from_regex(source)


class _Vocabulary:
    """A tokenizer as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        names = [tokenizer.token(id) or "" for id in range(tokenizer.vocab_size)]
        control = set(tokenizer.control_tokens())
        self.bos_token_id = None
        self.eos_token_id = min(tokenizer.eos_ids)
        self.tokens = [piece_bytes(name) for name in names]
        self.special_token_ids = [
            id for id, name in enumerate(names) if name in control or tokenizer.is_special(id)
        ]
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def _reason(error: str) -> str:
    """The telling line of a parser's message."""
    told = [line for line in error.splitlines() if line.startswith("error: ")]
    return told[0].removeprefix("error: ") if told else _first_line(error)


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["failed"])[0]
