"""A conversation as the ids that the model reads, with the place of every recording."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from afnext.chat.messages import Message
from afnext.chat.template import ChatTemplate
from afnext.chat.tokenizer import Tokenizer, break_tokens, control_pattern, unused_mark
from afnext.errors import ChatError

if TYPE_CHECKING:
    from afnext.audio.windows import AudioWindow


TAKER = "the model takes"
"""Whose limit a prompt is beyond."""


@dataclasses.dataclass(frozen=True, slots=True)
class AudioSpan:
    """Where a recording's audio tokens stand: ``ids[start : start + length]``."""

    recording: int
    start: int
    length: int


@dataclasses.dataclass(frozen=True, slots=True)
class PromptIds:
    """What goes to the model.

    Attributes:
        ids: token ids; an audio token's id is repeated once for each 40 ms.
        spans: where each recording stands, in the order of the conversation; one of at most 20 ms
            has length 0.
        windows: all windows in that order, numbered by recording.
    """

    ids: list[int]
    spans: tuple[AudioSpan, ...]
    windows: tuple[AudioWindow, ...]


def build_prompt(
    messages: Sequence[Message],
    windows: Sequence[Sequence[AudioWindow]],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    max_tokens: int | None = None,
    taker: str = TAKER,
    add_generation_prompt: bool = True,
) -> PromptIds:
    """Render a conversation and encode it.

    Ids equal those of transformers' processor wherever that one works. Only the program writes control
    tokens: those that somebody types are encoded as the text they look like.

    Args:
        messages: the conversation.
        windows: for each recording of the conversation, in order, its windows.
        max_tokens: the longest prompt that fits, if there is a limit.
        taker: whose limit it is, as messages say it.
        add_generation_prompt: end with the opening of the assistant's turn.

    Raises:
        ChatError: recordings and windows differ in number, the template fails or writes places for
            another number of recordings, the tokenizer knows no audio, or the prompt is too long.
    """
    turns = [len(m.audio) for m in messages if m.audio]
    if sum(turns) != len(windows):
        raise ChatError(
            f"the conversation has {sum(turns)} recordings, but there are windows for {len(windows)}"
        )
    if turns and tokenizer.audio_id is None:
        raise ChatError("the tokenizer has no audio token: this model cannot hear")
    lengths = [sum(w.num_tokens for w in recording) for recording in windows]
    if max_tokens is not None and sum(lengths) > max_tokens:
        raise too_long(sum(lengths), sum(lengths), max_tokens, taker)

    control = tokenizer.control_tokens(template.source)
    control_ids = {tokenizer.token_id(token) for token in control}
    pattern = control_pattern(control)
    mark = unused_mark([m.text for m in messages])
    text = template.render(
        [dataclasses.replace(m, text=break_tokens(m.text, pattern, mark)) for m in messages],
        add_generation_prompt=add_generation_prompt,
        audio_token=tokenizer.audio_token or "<sound>",
    )
    pieces = _place_recordings(text.split(mark), turns, tokenizer)

    ids: list[int] = []
    spans: list[AudioSpan] = []
    for piece in pieces:
        encoded = tokenizer.encode(piece)
        # A normalizer may turn other characters into a control token: then it is nobody's.
        if sum(id in control_ids for id in encoded) > len(pattern.findall(piece)):
            raise ChatError("a text of the conversation stands for a control token")
        for id in encoded:
            if id != tokenizer.audio_id:
                ids.append(id)
                continue
            length = lengths[len(spans)]
            spans.append(AudioSpan(len(spans), len(ids), length))
            ids += [id] * length
    if len(spans) != len(lengths):
        raise ChatError("the tokenizer does not keep the audio token whole")
    if max_tokens is not None and len(ids) > max_tokens:
        raise too_long(len(ids), sum(lengths), max_tokens, taker)
    numbered = (
        w if w.recording == number else dataclasses.replace(w, recording=number)
        for number, recording in enumerate(windows)
        for w in recording
    )
    return PromptIds(ids, tuple(spans), tuple(numbered))


def too_long(tokens: int, audio: int, limit: int, taker: str = TAKER) -> ChatError:
    """For a prompt of at least so many tokens, ``audio`` of them audio."""
    return ChatError(
        f"the prompt has at least {tokens:,} tokens ({audio:,} of them audio, 25 a second), but "
        f"{taker} {limit:,}: shorten the audio or the conversation"
    )


def _place_recordings(texts: list[str], turns: list[int], tokenizer: Tokenizer) -> list[str]:
    """Write the markers of every recording where the template wrote an audio token.

    The released template writes one token for a turn, whatever the number of its recordings; ours
    writes one for each. Markers that a template writes itself are taken as they are.
    """
    if not tokenizer.audio_token:
        return texts
    bos, eos = tokenizer.audio_bos, tokenizer.audio_eos
    place = re.compile(
        f"(?:{re.escape(bos)})?{re.escape(tokenizer.audio_token)}(?:{re.escape(eos)})?"
    )
    places = sum(len(place.findall(t)) for t in texts)
    if places == sum(turns):
        counts = [1] * places
    elif places == len(turns):
        counts = turns
    else:
        raise ChatError(
            f"the chat template wrote {places} places for {sum(turns)} recordings "
            f"in {len(turns)} turns"
        )
    one, queue = bos + tokenizer.audio_token + eos, iter(counts)
    return [place.sub(lambda _: one * next(queue), t) for t in texts]
