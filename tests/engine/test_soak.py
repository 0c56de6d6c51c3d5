"""A short soak; ``python -m tests.engine.soak`` is the long one."""

from __future__ import annotations

import pytest

from tests.engine.soak import soak


@pytest.mark.slow
def test_many_mixed_requests() -> None:
    assert "preemptions" in soak(150)
