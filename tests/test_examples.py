"""The scene that the README and ``make demo`` ask about is answered rightly, with times."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import afnext
from afnext.chat import parse_timestamps

SCENE = Path(__file__).parent.parent / "examples" / "scene.flac"
TRUTH = (SCENE.parent / "README.md").read_text().split("```\n")[2].strip()
"""What is in it, as ``python -m afnext.training.synthesis`` printed it."""


@pytest.fixture(scope="module")
def model() -> afnext.Assistant:
    return afnext.load("nano")


def test_what_happens_and_when(model: afnext.Assistant) -> None:
    """Speech, music and other sounds, each with its onset within 250 ms."""
    expected = [
        (part.split()[0], float(re.search(r"<t>([\d.]+)", part)[1]))  # type: ignore[index]
        for part in TRUTH.split("; ")
    ]
    assert {"speech", "music"} < {label for label, _ in expected}
    reply = model.ask(SCENE, "What sounds do you hear, and when?")
    found = [(s.text.strip(" ,."), s.start) for s in reply.segments]
    assert [label for label, _ in found] == [label for label, _ in expected]
    for (label, start), (_, onset) in zip(found, expected, strict=True):
        assert abs(start - onset) <= 0.25, label


def test_what_is_said(model: afnext.Assistant) -> None:
    said = re.findall(r"Speaker \d: (.+?)(?:;|$)", TRUTH)
    assert model.ask(SCENE, "Transcribe the speech.").text == " ".join(said)


def test_the_truth_has_times() -> None:
    assert parse_timestamps(TRUTH, "seconds")
