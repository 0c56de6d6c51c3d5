"""The objectives are what they say, against torch's own losses."""

from __future__ import annotations

import math

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from afnext.training.data.targets import LABELS, ONSETS, Words, frame_targets
from afnext.training.data.tokenizer import train_tokenizer
from afnext.training.network.answers import answer_losses
from afnext.training.network.loss import (
    SOUNDING,
    Heads,
    alignment_loss,
    clock_loss,
    frame_loss,
    reading_loss,
    size_loss,
    spelling_loss,
    ten_names,
)
from afnext.training.synthesis.music import Melody, Note
from afnext.training.synthesis.scenes import Event, Scene, Utterance

NO_TIMES = torch.zeros(0, dtype=torch.int64)
SILENT = torch.zeros(0).numpy()


@pytest.fixture(scope="module")
def words() -> Words:
    tokenizer: Tokenizer = train_tokenizer([*LABELS, "The door is open."] * 10, 400)
    return Words(tokenizer)


def test_answers_without_times_are_weighted_cross_entropy() -> None:
    logits, targets = torch.randn(6, 20), torch.arange(6)
    weights = torch.rand(6)
    wanted = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
    for times in (torch.arange(10, 20), NO_TIMES):
        found = (answer_losses(logits, targets, times) * weights).sum()
        torch.testing.assert_close(found, wanted)


def test_a_time_credits_its_neighbours() -> None:
    """Equal to cross-entropy with the smoothed distribution; mass past the ends stays on the end."""
    logits, times = torch.randn(2, 30), torch.arange(10, 20)
    smooth = torch.zeros(2, 30)
    smooth[0, 12:17] = torch.tensor([0.05, 0.15, 0.6, 0.15, 0.05])
    smooth[1, 10:13] = torch.tensor([0.8, 0.15, 0.05])
    got = answer_losses(logits, torch.tensor([14, 10]), times).mean()
    torch.testing.assert_close(got, F.cross_entropy(logits, smooth))


def test_labels_lie_where_what_they_name_does() -> None:
    scene = Scene(
        SILENT,
        (Event("siren", 0.4, 1.0),),
        (Utterance("x", "The door.", 1.2, 1.6),),
        (Melody("violin", (Note(60, 1.0, 1.1), Note(62, 1.1, 1.5)), 100, "steady"),),
    )
    active, onsets = frame_targets(scene, 50)

    def where(table: torch.Tensor, names: tuple[str, ...], name: str) -> list[int]:
        return table[:, names.index(name)].gt(0.5).nonzero()[:, 0].tolist()

    assert where(active, LABELS, "siren") == list(range(10, 25))  # 40 ms each
    assert where(active, LABELS, "speech") == where(active, LABELS, "Speaker 1")
    assert where(active, LABELS, "speech") == list(range(30, 40))
    assert where(active, LABELS, "violin") == where(active, LABELS, "music")
    assert where(active, LABELS, "D4")[0] in (27, 28)
    assert where(onsets, ONSETS, "note") == [25, 27]
    assert where(onsets, ONSETS, "turn") == [30]
    assert onsets[9:12, ONSETS.index("siren")].tolist() == pytest.approx([0.3, 1.0, 0.3])
    assert where(active, LABELS, "<t>") == [10, 25, 30]
    assert where(active, LABELS, "</t>") == [25, 37, 40]
    assert active[:, LABELS.index("dog")].sum() == 0


def test_recordings_without_labels_have_no_targets_but_times(words: Words) -> None:
    targets = words.targets([None, Scene(SILENT, (Event("dog", 0.0, 0.4),))], [3, 20])
    assert targets.labelled.tolist() == list(range(3, 23))
    assert targets.active.shape == (20, len(LABELS))
    assert targets.seconds[:4].tolist() == pytest.approx([0.02, 0.06, 0.10, 0.02])
    assert targets.spoken == ()


def test_the_frame_loss_wants_what_sounds(words: Words) -> None:
    """Heads that are right cost less than heads that know nothing."""
    scene = Scene(SILENT, (Event("dog", 0.1, 0.4),))
    targets = words.targets([scene], [20])
    heads = Heads(len(LABELS) + len(ONSETS), 10)
    blind = frame_loss(heads, torch.zeros(20, len(LABELS) + len(ONSETS)), targets)
    with torch.no_grad():
        for layer, first in ((heads.active, 0), (heads.onsets, len(LABELS))):
            layer.weight.zero_()
            layer.bias.fill_(-10)
            layer.weight[:, first : first + len(layer.bias)] = 20 * torch.eye(len(layer.bias))
    seen = frame_loss(heads, torch.cat((targets.active, targets.onsets), 1), targets)
    assert seen < 0.5 * blind


def test_spelling_is_the_mean_negative_log_likelihood_of_a_text(words: Words) -> None:
    """Three frames, two different tokens: of the 27 paths with uniform odds, five spell them."""
    scene = Scene(SILENT, (), (Utterance("x", "The", 0.0, 0.4),))
    targets = words.targets([scene, scene], [10, 10])
    assert [len(t) for t in targets.spelling] == [len(words.spell(" The"))] * 2
    two = type(targets)(
        targets.labelled, targets.active, targets.onsets, targets.seconds, ((0, 3),), ((0, 1),)
    )
    loss = spelling_loss(torch.zeros(20, 3), two)
    assert float(loss) == pytest.approx(-math.log(5 / 27) / 2, rel=1e-5)


def test_reading_and_alignment_want_audio_near_the_words_that_name_it(words: Words) -> None:
    scene = Scene(SILENT, (), (Utterance("x", "The door is open.", 0.0, 1.2),))
    targets = words.targets([None, scene], [10, 30])
    embedding = torch.randn(600, 64)
    pieces = 400
    ids = torch.tensor(
        [pieces] * 10 + list(range(50, 80))
    )  # what a head is sure of; at first the blank
    spelled = 30 * F.one_hot(ids, pieces + 1).float()
    near = embedding[ids]
    right = reading_loss(near, embedding, spelled, words, targets)
    assert right < 0.1 < 3 < reading_loss(near.flip(0), embedding, spelled, words, targets)
    elsewhere = torch.cat((torch.randn(10, 64), near[10:]))
    assert reading_loss(elsewhere, embedding, spelled, words, targets) == pytest.approx(
        float(right)
    )
    named = embedding[words.label_ids[LABELS.index("speech")]].mean(0).expand(40, -1)
    aligned = alignment_loss(named, embedding, words, targets)
    assert aligned < alignment_loss(-named, embedding, words, targets)


def test_the_clock_wants_each_token_near_its_own_time(words: Words) -> None:
    targets = words.targets([None], [3000])  # two minutes
    embedding = torch.randn(600, 512)
    tenths = (10 * targets.seconds).long()
    names = F.normalize(ten_names(embedding, words), dim=-1)
    alike = names @ names.T - torch.eye(len(names))
    assert alike.max() < 0.95, "two numbers of tens cannot be told apart"
    due = F.normalize(embedding[words.times][tenths % 100], dim=-1) + names[tenths // 100]
    right = clock_loss(due, embedding, words, targets)
    assert right < 1.0 < 5 < clock_loss(due.flip(0), embedding, words, targets)


def test_the_clock_counts_more_where_something_sounds(words: Words) -> None:
    scene = Scene(SILENT, (Event("bell", 0.4, 0.8),))
    targets = words.targets([scene, None], [50, 50])
    sounding = targets.labelled[(targets.active > 0).any(1)]
    embedding = torch.randn(600, 512)
    tenths = (10 * targets.seconds).long()
    due = F.normalize(embedding[words.times][tenths % 100], dim=-1)
    due = due + F.normalize(ten_names(embedding, words), dim=-1)[tenths // 100]

    def lost(rows: torch.Tensor) -> float:
        """What tokens that tell no time add."""
        audio = due.clone()
        audio[rows] = -due[rows]
        return float(
            clock_loss(audio, embedding, words, targets)
            - clock_loss(due, embedding, words, targets)
        )

    assert 5 < len(sounding) < 15
    assert lost(sounding) == pytest.approx(SOUNDING * lost(sounding + 50), rel=0.01)


def test_the_clock_reads_tens_alone_where_times_have_no_tokens() -> None:
    words = Words(train_tokenizer(LABELS, 400, "digits"))
    assert words.times.shape == (0,)
    targets = words.targets([None], [3000])  # two minutes
    embedding = torch.randn(600, 512)
    right = ten_names(embedding, words)[(targets.seconds // 10).long()]
    assert clock_loss(right, embedding, words, targets) < 1.0
    assert clock_loss(right.flip(0), embedding, words, targets) > 5


def test_audio_no_longer_than_embeddings_costs_nothing() -> None:
    embedding = F.normalize(torch.randn(40, 16), dim=-1) * 3
    audio = F.normalize(torch.randn(7, 16), dim=-1)
    assert size_loss(4.4 * audio, embedding) == 0
    torch.testing.assert_close(size_loss(6 * audio, embedding), torch.tensor(0.25))  # 2 less 1.5
