"""A short soak; ``python -m tests.engine.soak`` is the long one."""

from __future__ import annotations

import pytest

from tests.engine.models import as_on_a_gpu
from tests.engine.soak import model, soak


@pytest.mark.slow
def test_many_mixed_requests() -> None:
    assert "preemptions" in soak(model(), 150)


@pytest.mark.slow
def test_many_mixed_requests_as_on_a_gpu() -> None:
    """Steps as graphs are made of, several tokens at once where all are greedy."""
    assistant = model()
    as_on_a_gpu(assistant.engine)
    assert "preemptions" in soak(assistant, 150)
