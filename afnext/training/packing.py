"""Conversations as packed tensors: recordings once, what begins alike once, answers alone to be learnt.

Conversations that begin with the same recording share what comes before their first question: the trunk of
:class:`afnext.model.attention.Branches`. Packed, each is what it is alone (tested, loss and gradients). Windows
are encoded once, however many conversations hear them. Conversations without audio lie among the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from afnext.audio.windows import AudioWindow
from afnext.chat import ChatTemplate, Message, Tokenizer
from afnext.chat.prompt import build_prompt
from afnext.errors import AfnextError
from afnext.model import AudioBatch, AudioLanguageModel
from afnext.model.attention import Branches
from afnext.training.conversations import Conversation, Sound

NOT_LEARNT = -1  # a target

Windows = Mapping[str, Sequence[AudioWindow]]
"""A recording's windows by its path."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A conversation as ids.

    Attributes:
        ids: an audio token's id stands once for each 40 ms.
        targets: at each place the id that follows it where that is of an answer or its end, else
            ``NOT_LEARNT``.
        sounds: paths, in the order in which they are heard.
        trunk: how many ids from the start hold nothing but the system's text and the first recording.
        task: what kind of question it is.
    """

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    sounds: tuple[str, ...]
    trunk: int
    task: str


def encode(
    conversation: Conversation, windows: Windows, tokenizer: Tokenizer, template: ChatTemplate
) -> Encoded:
    """Render a conversation by the model's own template, and mark what of it is learnt: the assistant's texts
    and the token that ends each, nothing else.

    Raises:
        AfnextError: a sound stands elsewhere than before its turn's text, where the template could put it, or
            the template writes an earlier turn otherwise once a later one follows.
    """
    messages = [_message(turn.role, turn.parts, conversation.id) for turn in conversation.turns]
    heard = [list(windows[path]) for path in conversation.sounds]

    def ids_of(count: int, opened: bool) -> list[int]:
        part = messages[:count]
        own = heard[: sum(len(message.audio) for message in part)]
        return build_prompt(part, own, tokenizer, template, add_generation_prompt=opened).ids

    whole = ids_of(len(messages), False)
    learnt = [False] * len(whole)
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before, after = ids_of(place, True), ids_of(place + 1, False)
        if whole[: len(before)] != before or whole[: len(after)] != after:
            raise AfnextError(
                f"{conversation.id}: the chat template does not keep an earlier turn as it was"
            )
        ends = [i for i, id in enumerate(after) if id in tokenizer.eos_ids and i >= len(before)]
        if not ends:
            raise AfnextError(
                f"{conversation.id}: the chat template does not end the assistant's turn"
            )
        last = ends[-1]  # a template may write a line break behind it
        learnt[len(before) : last + 1] = [True] * (last + 1 - len(before))
    following = [*whole[1:], NOT_LEARNT]
    targets = [t if l else NOT_LEARNT for t, l in zip(following, [*learnt[1:], False], strict=True)]
    return Encoded(
        tuple(whole), tuple(targets), conversation.sounds,
        _trunk(messages, heard, tokenizer, template, whole), conversation.task,
    )  # fmt: skip


def _message(role: str, parts: Sequence[str | Sound], name: str) -> Message:
    sounds = [part.path for part in parts if isinstance(part, Sound)]
    if any(isinstance(part, str) for part in parts[: len(sounds)]):
        raise AfnextError(
            f"{name}: a sound stands within its turn's text; the model hears a turn's sounds first"
        )
    return Message(role, "".join(part for part in parts if isinstance(part, str)), sounds)


def _trunk(
    messages: Sequence[Message],
    heard: Sequence[Sequence[AudioWindow]],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    whole: Sequence[int],
) -> int:
    """Up to the end of the first recording, if the first question begins with exactly one."""
    first = next(i for i, message in enumerate(messages) if message.role == "user")
    if len(messages[first].audio) != 1:
        return 0
    opening = [*messages[:first], Message("user", "", messages[first].audio)]
    ids = build_prompt(opening, heard[:1], tokenizer, template, add_generation_prompt=False).ids
    same = next((i for i, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), len(ids))
    return same


@dataclass(frozen=True)
class PackedBatch:
    """Conversations one behind the other, as ``Branches`` wants them, and the audio that they hear.

    Attributes:
        ids: int64 ``[T]``, trunks first.
        positions: int64 ``[T]``, from 0 in each conversation.
        trunks, branches: lengths, see ``Branches``.
        audio: the windows of all recordings, each once.
        heard: int64 ``[placeholders]``, which audio token stands at each placeholder of ``ids``.
        targets: int64 ``[T]``, ``NOT_LEARNT`` or the id that follows.
        conversation: int64 ``[T]``, whose a token is; -1 in a trunk.
        tasks: of each conversation.
    """

    ids: Tensor
    positions: Tensor
    trunks: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    audio: AudioBatch
    heard: Tensor
    targets: Tensor
    conversation: Tensor
    tasks: tuple[str, ...]


def pack(conversations: Sequence[Encoded], windows: Windows, audio_id: int) -> PackedBatch:
    """Lay conversations out, those that share a trunk together."""
    groups: dict[object, list[Encoded]] = {}
    for number, item in enumerate(conversations):
        key = (item.sounds[0], item.ids[: item.trunk]) if item.trunk else number
        groups.setdefault(key, []).append(item)
    order = [item for group in groups.values() for item in group]
    paths = list(dict.fromkeys(path for item in order for path in item.sounds))
    audio = AudioBatch.collate([list(windows[path]) for path in paths])
    first_token, at = {}, 0
    for path, tokens in zip(paths, audio.row_tokens, strict=True):
        first_token[path] = (at, tokens)
        at += tokens

    def tokens_of(sounds: Sequence[str]) -> list[int]:
        return [n for path in sounds for n in range(first_token[path][0], sum(first_token[path]))]

    ids: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    heard: list[int] = []
    trunks = []
    for group in groups.values():
        trunk = group[0].trunk
        trunks.append(trunk)
        ids += group[0].ids[:trunk]
        positions += range(trunk)
        targets += [NOT_LEARNT] * trunk
        owner += [-1] * trunk
        if trunk:
            heard += tokens_of(group[0].sounds[:1])
    for number, item in enumerate(order):
        rest = len(item.ids) - item.trunk
        ids += item.ids[item.trunk :]
        positions += range(item.trunk, len(item.ids))
        targets += item.targets[item.trunk :]
        owner += [number] * rest
        heard += tokens_of(item.sounds[1:] if item.trunk else item.sounds)
    packed = torch.tensor(ids)
    if int((packed == audio_id).sum()) != len(heard):
        raise AfnextError("pack: placeholders and audio tokens differ in number")
    return PackedBatch(
        packed, torch.tensor(positions), tuple(trunks),
        tuple(tuple(len(i.ids) - i.trunk for i in group) for group in groups.values()),
        audio, torch.tensor(heard, dtype=torch.int64), torch.tensor(targets),
        torch.tensor(owner), tuple(item.task for item in order),
    )  # fmt: skip


def hidden_states(net: AudioLanguageModel, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """The last hidden states ``[T, hidden]`` and the audio tokens ``[A, hidden]`` that went in."""
    decoder = net.language_model.model
    audio = net.encode(batch.audio)
    embeds = decoder.embed_tokens(batch.ids)
    places = (batch.ids == net.config.audio_token_id).nonzero()[:, 0]
    embeds = embeds.index_copy(0, places, audio.to(embeds.dtype)[batch.heard])
    attend = Branches(batch.trunks, batch.branches, batch.positions, decoder.inv_freq.values)
    return decoder(embeds, attend)[-1], audio
