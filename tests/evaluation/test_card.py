"""The card of the embedded model says what was measured of it."""

from __future__ import annotations

import json

from afnext.evaluation.card import tables
from afnext.hub import EMBEDDED
from afnext.model import AudioLanguageModel

FOLDER = EMBEDDED["nano"]


def test_the_cards_tables_are_those_of_its_scores() -> None:
    scores = json.loads((FOLDER / "scores.json").read_text())
    lines = (FOLDER / "README.md").read_text().splitlines()
    rows = tables(scores).splitlines()
    assert len(rows) > 50
    assert [row for row in rows if row not in lines] == []


def test_the_scores_are_of_a_model_of_its_size() -> None:
    scores = json.loads((FOLDER / "scores.json").read_text())
    net = AudioLanguageModel.from_pretrained(FOLDER)
    assert scores["parameters"] == sum(p.numel() for p in net.parameters())
    assert (FOLDER / "model.safetensors").stat().st_size < 30e6
