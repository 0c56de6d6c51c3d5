"""Conversations as packed tensors: recordings once, what begins alike once, answers alone to be learnt.

Conversations that begin with the same recording share what comes before their first question: the trunk of
:class:`afnext.model.attention.Branches`. Packed, each is what it is alone (tested, loss and gradients).
Windows are encoded once, however many conversations hear them. Conversations without audio lie among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from afnext.audio.windows import AudioWindow
from afnext.chat import ChatTemplate, Message, Tokenizer
from afnext.chat.prompt import build_prompt
from afnext.errors import AfnextError
from afnext.model import AudioBatch, AudioLanguageModel
from afnext.model.attention import Branches
from afnext.training.data.conversations import Conversation, Sound

NOT_LEARNT = -1  # a target

Windows = Mapping[str, Sequence[AudioWindow]]
"""A recording's windows by its path."""


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A conversation as ids.

    Attributes:
        ids: int32 ``[T]``; an audio token's id stands once for each 40 ms.
        learnt: bool ``[T]``, whether an id is of an answer or ends one.
        sounds: paths, in the order in which they are heard.
        begins: with which recordings, heard or written out; "" for none. What those that begin alike have
            in common can lie once.
        task: what kind of question it is.
        source: the name of where it is from.
    """

    ids: NDArray[np.int32]
    learnt: NDArray[np.bool_]
    sounds: tuple[str, ...]
    begins: str
    task: str
    source: str = ""

    @property
    def nbytes(self) -> int:
        """Of its arrays."""
        return self.ids.nbytes + self.learnt.nbytes


def encode(
    conversation: Conversation,
    lengths: Mapping[str, int],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    scripts: Mapping[str, str] | None = None,
) -> Encoded:
    """Render a conversation by the model's own template, and mark what of it is learnt: the assistant's texts
    and the token that ends each, nothing else.

    Args:
        conversation: what is said.
        lengths: audio tokens of each recording, by its path.
        tokenizer, template: the model's.
        scripts: texts that stand in the place of recordings; then nothing is heard.

    Raises:
        AfnextError: a sound stands elsewhere than before its turn's text, where the template could put it, or
            the template writes an earlier turn otherwise once a later one follows.
    """
    sounds = conversation.sounds
    messages = [
        _message(turn.role, turn.parts, conversation.id, scripts) for turn in conversation.turns
    ]

    def ids_of(count: int, opened: bool) -> list[int]:
        part = messages[:count]
        count_heard = sum(len(message.audio) for message in part)
        heard: Any = [[_Silence(lengths[path])] for path in sounds[:count_heard]]
        return build_prompt(part, heard, tokenizer, template, add_generation_prompt=opened).ids

    whole = ids_of(len(messages), False)
    learnt = np.zeros(len(whole), bool)
    for place, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = ids_of(place, True)
        after = whole if place == len(messages) - 1 else ids_of(place + 1, False)
        if whole[: len(before)] != before or whole[: len(after)] != after:
            raise AfnextError(
                f"{conversation.id}: the chat template does not keep an earlier turn as it was"
            )
        ends = [i for i, id in enumerate(after) if id in tokenizer.eos_ids and i >= len(before)]
        if not ends:
            raise AfnextError(
                f"{conversation.id}: the chat template does not end the assistant's turn"
            )
        learnt[len(before) : ends[-1] + 1] = True  # a template may write a line break behind it
    return Encoded(
        np.asarray(whole, np.int32), learnt, () if scripts is not None else sounds,
        "\n".join(sounds), conversation.task,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Silence:
    """What a prompt needs to know of a window: how many tokens it has."""

    num_tokens: int
    recording: int = 0


def _message(
    role: str, parts: Sequence[str | Sound], name: str, scripts: Mapping[str, str] | None
) -> Message:
    sounds = [part.path for part in parts if isinstance(part, Sound)]
    if any(isinstance(part, str) for part in parts[: len(sounds)]):
        raise AfnextError(
            f"{name}: a sound stands within its turn's text; the model hears a turn's sounds first"
        )
    text = "".join(part for part in parts if isinstance(part, str))
    if scripts is None:
        return Message(role, text, sounds)
    return Message(role, "".join(f"{scripts[path]}\n" for path in sounds) + text, [])


@dataclass(frozen=True)
class PackedBatch:
    """Conversations one behind the other, as ``Branches`` wants them, and the audio that they hear.

    Attributes:
        ids: int64 ``[T]``, trunks first.
        positions: int64 ``[T]``, from 0 in each conversation.
        trunks, branches: lengths, see ``Branches``.
        audio: the windows of all recordings, each once.
        paths: of the recordings, in their order in ``audio``.
        heard: int64 ``[placeholders]``, which audio token stands at each placeholder of ``ids``.
        targets: int64 ``[T]``, ``NOT_LEARNT`` or the id that follows.
        conversation: int64 ``[T]``, whose a token is; -1 in a trunk.
        tasks, sources: of each conversation.
    """

    ids: Tensor
    positions: Tensor
    trunks: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    audio: AudioBatch
    paths: tuple[str, ...]
    heard: Tensor
    targets: Tensor
    conversation: Tensor
    tasks: tuple[str, ...]
    sources: tuple[str, ...]

    def to(self, device: torch.device) -> PackedBatch:
        """The same batch on ``device``; whose a token is stays where it is."""
        moved = {n: getattr(self, n).to(device) for n in ("ids", "positions", "heard", "targets")}
        return replace(self, audio=self.audio.to(device), **moved)


def pack(
    conversations: Sequence[Encoded], windows: Windows, audio_id: int | None, share: bool = True
) -> PackedBatch:
    """Lay conversations out; what those of one beginning have in common lies once, up to the first answer,
    where they ``share`` it.
    """
    groups: dict[str | int, list[Encoded]] = {}
    for number, item in enumerate(conversations):
        groups.setdefault((share and item.begins) or number, []).append(item)
    order = [item for group in groups.values() for item in group]
    paths = list(dict.fromkeys(path for item in order for path in item.sounds))
    audio = AudioBatch.collate([list(windows[path]) for path in paths])
    first_token, at = {}, 0
    for path, tokens in zip(paths, audio.row_tokens, strict=True):
        first_token[path] = np.arange(at, at + tokens)
        at += tokens

    trunks = [_common(group) for group in groups.values()]
    parts = [  # (conversation or -1, first, last) of what lies one behind the other
        *((-1, group[0], 0, trunk) for group, trunk in zip(groups.values(), trunks, strict=True)),
        *(
            (number, item, trunk, len(item.ids))
            for number, (item, trunk) in enumerate(
                (item, trunk)
                for group, trunk in zip(groups.values(), trunks, strict=True)
                for item in group
            )
        ),
    ]
    ids, targets, positions, owner, heard = [], [], [], [], []
    for number, item, first, last in parts:
        ids.append(item.ids[first:last])
        following = np.where(item.learnt[1:], item.ids[1:], NOT_LEARNT)
        targets.append(np.append(following, NOT_LEARNT)[first:last])
        positions.append(np.arange(first, last))
        owner.append(np.full(last - first, number))
        if item.sounds:
            tokens_heard = np.concatenate([first_token[path] for path in item.sounds])
            places = item.ids == audio_id
            if int(places.sum()) != len(tokens_heard):
                raise AfnextError("pack: placeholders and audio tokens differ in number")
            before = int(places[:first].sum())
            heard.append(tokens_heard[before : before + int(places[first:last].sum())])
    return PackedBatch(
        _tensor(ids), _tensor(positions), tuple(trunks),
        tuple(
            tuple(len(item.ids) - trunk for item in group)
            for group, trunk in zip(groups.values(), trunks, strict=True)
        ),
        audio, tuple(paths), _tensor(heard), _tensor(targets), _tensor(owner),
        tuple(item.task for item in order), tuple(item.source for item in order),
    )  # fmt: skip


def _tensor(parts: Sequence[NDArray[np.generic]]) -> Tensor:
    return torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64))


def _common(group: Sequence[Encoded]) -> int:
    """How many ids all of a group begin with, before any answer."""
    if len(group) == 1:
        return 0
    first = group[0].ids
    length = min(int(item.learnt.argmax()) - 1 for item in group)
    for item in group[1:]:
        differs = np.flatnonzero(first[:length] != item.ids[:length])
        length = int(differs[0]) if len(differs) else length
    return max(0, length)


def hear(net: AudioLanguageModel, audio: AudioBatch) -> tuple[Tensor, Tensor]:
    """Encoder features ``[A, audio hidden]`` and the audio tokens ``[A, hidden]`` made of them."""
    features, tokens = [], []
    for plan in audio.plans:
        features.append(net.audio_tower(audio.features[plan.frames], plan))
        turned = net.rote(features[-1], plan.window_start, plan.token_index)
        tokens.append(net.multi_modal_projector(turned))
    if not features:
        none = net.multi_modal_projector.linear_2.weight
        return none.new_zeros(0, net.config.audio.hidden_size), none.new_zeros(0, none.shape[0])
    return torch.cat(features), torch.cat(tokens)


def hidden_states(net: AudioLanguageModel, batch: PackedBatch, audio: Tensor) -> Tensor:
    """The last hidden states ``[T, hidden]`` of a batch whose audio tokens ``[A, hidden]`` are given."""
    decoder = net.language_model.model
    embeds = decoder.embed_tokens(batch.ids)
    # Without placeholders too where the encoder is in everybody's backward: else, with a decoder that is
    # frozen, its layers were in that of some processes alone, and those waited for the others for ever.
    if len(batch.heard) or audio.requires_grad:
        places = (batch.ids == net.config.audio_token_id).nonzero()[:, 0]
        embeds = embeds.index_copy(0, places, audio.to(embeds.dtype)[batch.heard])
    attend = Branches(batch.trunks, batch.branches, batch.positions, decoder.inv_freq.values)
    return decoder(embeds, attend)[-1]
