"""How much the cache of keys and values takes where nobody says."""

from __future__ import annotations

import pytest
import torch

from afnext.engine import Engine, memory
from afnext.engine.engine import CONTEXTS, PAGE_SIZE
from tests.engine.models import small_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("free", "one_context", "taken"),
    [
        (64 << 30, 1 << 20, 4 << 30),
        (64 << 30, 8 << 30, 8 << 30),
        (10 << 30, 8 << 30, 5 << 30),
        (1 << 20, 1 << 20, 1 << 28),
    ],
)
def test_the_default(
    monkeypatch: pytest.MonkeyPatch, free: int, one_context: int, taken: int
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: free)
    assert memory.default_cache_bytes(CPU, one_context) == taken


def test_the_default_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two engines that are made before either takes its memory leave some for what is computed."""
    monkeypatch.setattr(memory, "available_bytes", lambda device: 60 << 30)
    found = memory.default_cache_bytes(torch.device("cuda"), 2 << 30)
    assert found == 24 << 30
    assert 60 - 2 * (found >> 30) >= 8
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1 << 20)
    assert memory.default_cache_bytes(torch.device("cuda"), 2 << 30) == 1 << 28


def test_memory_that_is_free_is_known() -> None:
    import psutil

    found = memory.available_bytes(CPU)
    assert 0 < found <= psutil.virtual_memory().total


def test_memory_is_taken_as_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of 32 contexts costs nothing before somebody speaks that long."""
    import psutil

    monkeypatch.setattr(memory, "available_bytes", lambda device: 8 << 30)

    engine = Engine(small_model(text={"max_position_embeddings": 1 << 20}), [])
    assert engine.stats().pages >= (1 << 20) // PAGE_SIZE
    assert engine.stats().pages <= CONTEXTS * (1 << 20) // PAGE_SIZE
    engine.submit([1, 2, 3]).cancel()
    before = psutil.Process().memory_info().rss
    next(engine.submit([1, 2, 3]))
    assert psutil.Process().memory_info().rss - before < 200 << 20
