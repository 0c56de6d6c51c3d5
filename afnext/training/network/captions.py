"""What AF-Whisper is trained by: a decoder with cross-attention writes captions and transcripts from the
encoder's features, and is thrown away afterwards. Audio Flamingo 3 (arXiv 2507.08128) has 24 layers, 8 heads
and 1024 channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from afnext.training.config import CaptionShape
from afnext.training.data.packing import NOT_LEARNT, PackedBatch
from afnext.training.network.answers import chunked_answer_losses


@dataclass(frozen=True)
class Caption:
    """A conversation as the decoder has it.

    Attributes:
        ids, targets: int64 ``[L]``, its text, and what follows each of it: ``NOT_LEARNT`` or an id.
        heard: int64 ``[M]``, which audio tokens of the batch it hears.
        rows: int64 ``[L]``, where its text lies in the batch.
    """

    ids: Tensor
    targets: Tensor
    heard: Tensor
    rows: Tensor


def captions_of(batch: PackedBatch, audio_id: int) -> list[Caption]:
    """The conversations that hear something, each whole, what it shares with others too."""
    device = batch.ids.device
    ends = list(accumulate(batch.trunks, initial=0))
    at, found = ends[-1], []
    placeholder = torch.cumsum(batch.ids == audio_id, 0) - 1  # which of all, where there is one
    for first, last, branches in zip(ends, ends[1:], batch.branches, strict=False):
        for length in branches:
            rows = torch.cat((torch.arange(first, last), torch.arange(at, at + length))).to(device)
            at += length
            sounds = batch.ids[rows] == audio_id
            text, audio = rows[~sounds], rows[sounds]
            if len(audio):
                heard = batch.heard[placeholder[audio]]
                found.append(Caption(batch.ids[text], batch.targets[text], heard, text))
    return found


class CaptionDecoder(nn.Module):
    """Layers of attention to the text so far, then to all audio tokens of its conversation.

    Args:
        audio_width: channels of the encoder.
        vocabulary: of the text.
        shape: of the layers.
    """

    def __init__(self, audio_width: int, vocabulary: int, shape: CaptionShape) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, shape.width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.audio = nn.Linear(audio_width, shape.width)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                shape.width, shape.heads, 4 * shape.width, dropout=0.0, activation="gelu",
                batch_first=True, norm_first=True,
            )
            for _ in range(shape.layers)
        )  # fmt: skip
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, ids: Tensor, audio: Tensor, lengths: Tensor) -> Tensor:
        """The last hidden states ``[B, L, width]``; their logits are products with the embeddings.

        Args:
            ids: int64 ``[B, L]``, padded at the end with anything.
            audio: encoder features ``[B, M, audio width]``, padded at the end.
            lengths: int64 ``[B]``, how many of the features there are.
        """
        heard = self.audio(audio)
        heard = heard + _positions(heard)
        x = self.embed(ids)
        x = x + _positions(x)
        causal = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=ids.device)
        padding = torch.arange(audio.shape[1], device=ids.device) >= lengths[:, None]
        for layer in self.layers:
            x = layer(
                x,
                heard,
                tgt_mask=causal.isneginf(),
                memory_key_padding_mask=padding,
                tgt_is_causal=True,
            )
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[N, vocabulary]`` of hidden states ``[N, width]``."""
        return hidden @ self.embed.weight.T

    def loss(
        self, batch: PackedBatch, weights: Tensor, encoded: Tensor, audio_id: int
    ) -> Tensor | None:
        """Next-token losses of the answers about recordings, each by its weight, summed; None where there are
        none.

        Args:
            batch: the conversations.
            weights: float32 ``[learnt]``, of its targets that are learnt, in their order.
            encoded: encoder features ``[A, audio width]`` of all its audio tokens.
            audio_id: the placeholder's id.
        """
        captions = captions_of(batch, audio_id)
        if not captions:
            return None
        ids = pad_sequence([c.ids for c in captions], batch_first=True)
        targets = pad_sequence([c.targets for c in captions], True, NOT_LEARNT)
        audio = pad_sequence([encoded[c.heard] for c in captions], batch_first=True)
        lengths = torch.tensor([len(c.heard) for c in captions], device=ids.device)
        learnt = targets != NOT_LEARNT
        hidden = self(ids, audio, lengths)[learnt]
        losses = chunked_answer_losses(self.logits, hidden, targets[learnt], ())
        by_row = weights.new_zeros(len(batch.ids))
        by_row[batch.targets != NOT_LEARNT] = weights
        of_each = torch.cat([by_row[c.rows[c.targets != NOT_LEARNT]] for c in captions])
        return (losses * of_each).sum()


def _positions(x: Tensor) -> Tensor:
    """Whisper's sinusoids ``[L, width]`` for ``x`` of ``[B, L, width]``."""
    half = x.shape[2] // 2
    steps = torch.arange(half, device=x.device) / max(1, half - 1)
    angles = torch.arange(x.shape[1], device=x.device)[:, None] * 10_000.0**-steps
    return torch.cat((angles.sin(), angles.cos()), 1).to(x.dtype)
