"""The objectives beside answers: what sounds when, what is said, audio close to the words that name it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from afnext.model.config import ModelConfig
from afnext.training.config import TrainConfig
from afnext.training.data.targets import LABELS, ONSETS, Targets, Words
from afnext.training.network.captions import CaptionDecoder

ONSET_WEIGHT = 5.0
"""Of a beginning among frames without one, which are many."""
BLANK = 0.01
"""What a token that spells nothing weighs."""
LONGEST = 1.5
"""That an audio token may be, in mean lengths of embeddings."""
SOUNDING = 4.0
"""What an audio token where something sounds weighs, in reading times, against one of silence."""
READING, SHARPNESS = 16.0, 20.0
"""What a product with an embedding, and a cosine with one, are multiplied with to be a logit."""


class Heads(nn.Module):
    """Linear readings of encoder features at 25 Hz, used in training, never exported: what is active, what
    begins, what is spelled (the tokenizer's pieces, then the blank). And the decoder of ``captions``, if any.
    """

    def __init__(self, width: int, pieces: int) -> None:
        super().__init__()
        self.active = nn.Linear(width, len(LABELS))
        self.onsets = nn.Linear(width, len(ONSETS))
        self.spelling = nn.Linear(width, pieces + 1)
        for name, parameter in self.named_parameters():
            (nn.init.zeros_ if name.endswith("bias") else nn.init.normal_)(parameter)
            parameter.data.mul_(0.05)
        self.captions: CaptionDecoder | None = None


def heads_of(config: TrainConfig, model: ModelConfig) -> Heads | None:
    """The heads that a chain's objectives need, over the encoder of ``model``; None where they need none."""
    wanted = [stage.losses for stage in config.stages]
    captions = any(losses.captions for losses in wanted)
    if not captions and not any(losses.frames or losses.spelling for losses in wanted):
        return None
    width = model.audio.hidden_size
    heads = Heads(width, config.model.pieces)
    if captions:
        heads.captions = CaptionDecoder(width, model.text.vocab_size, config.caption_decoder)
    return heads


def counts(targets: Targets) -> dict[str, float]:
    """What each loss here is a mean over, by its name in the log: so much of a step's is in a batch. Of
    ``reading``, whose weights are the head's own, the tokens.
    """
    labelled = len(targets.labelled)
    return {
        "frame": labelled,
        "spelling": sum(map(len, targets.spelling)),
        "reading": sum(length for _, length in targets.spoken),
        "alignment": labelled,
        "clock": float(clock_weights(targets).sum()) if labelled else 0.0,
        "size": len(targets.seconds),
    }


def frame_loss(heads: Heads, encoded: Tensor, targets: Targets) -> Tensor:
    """Ten times the mean binary cross-entropy of activity and of onsets."""
    x = encoded[targets.labelled]
    active, onsets = heads.active(x).float(), heads.onsets(x).float()
    weights = 1 + (ONSET_WEIGHT - 1) * (targets.onsets > 0)
    return 10 * (
        F.binary_cross_entropy_with_logits(active, targets.active)
        + F.binary_cross_entropy_with_logits(onsets, targets.onsets, weight=weights)
    )


def spelling_loss(logits: Tensor, targets: Targets) -> Tensor:
    """Connectionist temporal classification of what is said, mean per spelled token.

    Args:
        logits: ``[A, pieces + 1]`` of all audio tokens, the blank last.
    """
    counts = [count for _, count in targets.spoken]
    rows, places = spoken_rows(targets, logits.device)
    log_p = F.log_softmax(logits[rows].float(), -1)
    shape = max(counts), len(counts), logits.shape[1]
    # One copy: the gradient of a copy for each window would be as large as all windows, every time.
    padded = log_p.new_zeros(shape[0] * shape[1], shape[2]).index_copy(0, places, log_p)
    loss = F.ctc_loss(
        padded.view(shape),
        torch.tensor([id for text in targets.spelling for id in text], device=logits.device),
        torch.tensor(counts),
        torch.tensor([len(text) for text in targets.spelling]),
        blank=logits.shape[1] - 1,
        reduction="sum",
        zero_infinity=True,
    )
    return loss / max(1, sum(map(len, targets.spelling)))


def spoken_rows(targets: Targets, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of all audio tokens in whose windows somebody speaks: which they are, and where they lie in ``[longest
    window, windows]``, flattened.
    """
    count = len(targets.spoken)
    rows = [torch.arange(first, first + length) for first, length in targets.spoken]
    places = [torch.arange(len(row)) * count + number for number, row in enumerate(rows)]
    return torch.cat(rows).to(device), torch.cat(places).to(device)


def reading_loss(
    audio: Tensor, embedding: Tensor, spelled: Tensor, words: Words, targets: Targets
) -> Tensor:
    """Cross-entropy of what the decoder's own word embeddings read in the adaptor's output, against what
    the head reads in the encoder's (``spelled``, logits ``[A, pieces + 1]``, not moved by it). Logits are
    products with embeddings, x16, as a tied head makes them of a normed state.

    Tokens weigh by how sure it is that they spell something; those of recordings without speech do not
    count: there the head has learnt nothing.
    """
    rows, _ = spoken_rows(targets, audio.device)
    wanted = spelled[rows].detach().float().softmax(-1)
    pieces = spelled.shape[1] - 1
    read = torch.cat((embedding[:pieces], embedding[words.blank : words.blank + 1])).float()
    log_p = F.log_softmax(READING * audio[rows].float() @ read.T, -1)
    weights = 1 - wanted[:, -1] + BLANK
    return -(weights[:, None] * wanted * log_p).sum() / weights.sum()


def alignment_loss(audio: Tensor, embedding: Tensor, words: Words, targets: Targets) -> Tensor:
    """Cross-entropy of (cosine of adaptor output and a label's word embedding, x16 - 5) against activity."""
    named = F.normalize(embedding[words.label_ids].mean(1).float(), dim=-1)
    cosine = F.normalize(audio[targets.labelled].float(), dim=-1) @ named.T
    return 10 * F.binary_cross_entropy_with_logits(16 * cosine - 5, targets.active)


def ten_names(embedding: Tensor, words: Words) -> Tensor:
    """What audio tokens are to be near that lie so many tens of seconds in, ``[TENS, hidden]``: the
    embeddings of its digits, the later ones shifted along the channels, so that 1, 11 and 12, 21 differ.
    """
    digits = [embedding[ids].roll(7 * place, -1) for place, ids in enumerate(words.ten_ids.T)]
    return (torch.stack(digits) * words.ten_weights.T[..., None]).sum(0)


def size_loss(audio: Tensor, embedding: Tensor) -> Tensor:
    """Mean square of how much longer the adaptor's output is than 1.5 times the embeddings' mean length.

    Without it the output grows, above all by what all tokens share: the decoder's layers, which add to it,
    come to count for less, and all that is told by directions drowns in what is shared.
    """
    usual = embedding.detach().float().norm(dim=-1).mean()
    return (audio.float().norm(dim=-1) / usual - LONGEST).relu().square().mean()


def clock_weights(targets: Targets) -> Tensor:
    """Of each audio token in ``clock_loss``, float32 ``[A]``."""
    weights = torch.ones_like(targets.seconds)
    weights[targets.labelled] += (SOUNDING - 1) * (targets.active > 0).any(1)
    return weights


def clock_loss(audio: Tensor, embedding: Tensor, words: Words, targets: Targets) -> Tensor:
    """Cross-entropy of cosines with the embeddings of the times and of the tens before them, against each
    token's own; the embeddings are not moved by it. Of the tens alone where no times have tokens. Where
    something sounds, whose time may be asked for, a token counts for several.
    """
    unit = F.normalize(audio.float(), dim=-1)
    tenths = (10 * targets.seconds).long()
    tens = (tenths // 100).clamp(max=len(words.ten_ids) - 1)
    table = embedding.detach().float()
    readings = [(ten_names(table, words), tens)]
    if len(words.times):
        readings.append((table[words.times], tenths % 100))
    weights = clock_weights(targets)
    losses = [
        F.cross_entropy(SHARPNESS * unit @ F.normalize(names, dim=-1).T, right, reduction="none")
        for names, right in readings
    ]
    return (torch.stack(losses).sum(0) * weights).sum() / weights.sum()
