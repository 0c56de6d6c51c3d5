"""Thinking and answer are told apart, whole or streamed in pieces of any size."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnext.chat import ThinkingSplitter, split_thinking


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("A dog.", "", "A dog."),
        ("<think>Barks.</think>A dog.", "Barks.", "A dog."),
        ("<think>\nBarks.\n</think>\n\nA dog.\n", "Barks.", "A dog."),
        ("<think>Barks, then", "Barks, then", ""),
        ("Barks.</think>A dog.", "Barks.", "A dog."),
        ("<think>B</think> <answer>(C) 1-2</answer>", "B", "(C) 1-2"),
        ("<answer>(C)", "", "(C)"),
        ("Well, <think>B</think> a dog.", "B", "Well,  a dog."),
        ("<think>A</think>x<think>B</think>y", "A\nB", "xy"),
        ("<THINK>A</Think>B", "A", "B"),
        ("1 < 2 <thin> </thinks>", "", "1 < 2 <thin> </thinks>"),
        ("<think></think>", "", ""),
        ("", "", ""),
        ("<t>1.2-2.5</t> bell", "", "<t>1.2-2.5</t> bell"),
    ],
)
def test_forms(text: str, thinking: str, answer: str) -> None:
    assert split_thinking(text) == (thinking, answer)


def test_a_prompt_may_have_opened_the_thinking() -> None:
    assert split_thinking("Barks, then", opened=True) == ("Barks, then", "")
    assert split_thinking("B</think>A", opened=False) == ("", "BA")


PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<t>",
        "<",
        "</",
        "think>",
        " ",
        "\n",
        "a",
        "é",
    ]
)


@given(st.lists(PIECES, max_size=20).map("".join), st.lists(st.integers(0, 60)), st.booleans())
def test_cutting_makes_no_difference(text: str, cuts: list[int], opened: bool) -> None:
    """Nothing is held back longer than a tag could last, and all pieces make the whole."""
    edges = sorted({0, len(text), *(min(c, len(text)) for c in cuts)})
    splitter = ThinkingSplitter(opened)
    pieces = [p for a, b in pairwise(edges) for p in splitter.push(text[a:b])]
    pieces += splitter.flush()
    together = {
        c: "".join(p.text for p in pieces if p.channel == c) for c in ("thinking", "answer")
    }
    assert (together["thinking"], together["answer"]) == split_thinking(text, opened)
    assert all(p.text.strip() for p in pieces)


def test_text_comes_at_once() -> None:
    splitter = ThinkingSplitter()
    assert [p.text for p in splitter.push("A <")] == ["A"]
    assert [p.text for p in splitter.push("b")] == [" <b"]
    assert splitter.push("</ans") == []
    assert splitter.flush() == [("answer", "</ans")]
