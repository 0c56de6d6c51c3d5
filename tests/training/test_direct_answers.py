"""What a stage changes of the conversations that it draws."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Literal

import pytest

from afnext.chat import ChatTemplate, Tokenizer
from afnext.training.config import StageConfig, TrainConfig
from afnext.training.data import conversations
from afnext.training.data.batches import Batches
from afnext.training.data.conversations import Conversation, Turn
from afnext.training.data.packing import NOT_LEARNT
from afnext.training.data.sources import Source
from afnext.training.data.targets import LABELS, Words
from afnext.training.data.tokenizer import save_tokenizer, train_tokenizer
from afnext.training.tasks.sounds import direct

SAID = [
    ("count", ["bell, siren: 2."]),
    ("presence+count_of+count", ["Yes.", "<t>1.0-2.0</t>, <t>3.0-4.5</t>: 2.", "0."]),
    ("speakers", ["bell: 1."]),
    ("", ["bell, dog: 2."]),
    ("count+count", ["siren: 1."]),
]
"""Kinds of question, as a record names them, with the answers; the last is not of one kind for each."""
DIRECT = {"2.", "Yes.", "0.", "bell: 1.", "bell, dog: 2.", "siren: 1."}
LISTED = {answer for _, answers in SAID for answer in answers}


@pytest.mark.parametrize(("how", "wanted"), [("listed", LISTED), ("direct", DIRECT)])
def test_numbers_are_answered_as_the_stage_wants(
    how: Literal["listed", "direct"], wanted: set[str], tmp_path: Path
) -> None:
    """Decoded from what is learnt, with the token that ends it."""
    path = tmp_path / "said.jsonl"
    asked = Turn("user", ("How many: 3?",))
    said = [[(asked, Turn("assistant", (a,))) for a in answers] for _, answers in SAID]
    conversations.write(
        path,
        (
            Conversation(str(place), tuple(chain(*turns)), task=task)
            for place, ((task, _), turns) in enumerate(zip(SAID, said, strict=True))
        ),
    )
    trained = train_tokenizer(LABELS, 400)
    save_tokenizer(trained, tmp_path)
    stage = StageConfig("s", 1, {"x": 1.0}, {"said": 1.0}, batch_tokens=900, answers=how)
    batches = Batches(
        TrainConfig("t", [stage]), stage, {"said": Source(path)}, Tokenizer.from_folder(tmp_path),
        ChatTemplate.from_folder(tmp_path), Words(trained),
    )  # fmt: skip
    targets = batches.first(1)[0].packed.targets
    text = trained.decode(targets[targets != NOT_LEARNT].tolist(), skip_special_tokens=False)
    assert set(text.removesuffix("<|im_end|>").split("<|im_end|>")) == wanted


def test_a_direct_answer_is_the_number_of_the_listed_one() -> None:
    assert direct("count", "bell, siren, bell: 3.") == "3."
    assert direct("count_of", "<t>1.2-2.5</t>: 1.") == "1."
    assert direct("count", "0.") == "0."
    assert direct("list", "bell: 1.") == "bell: 1."
