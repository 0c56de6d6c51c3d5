from __future__ import annotations

import pytest

from afnext.model import AudioLanguageModel
from tests.engine.models import small_model


@pytest.fixture(scope="session")
def net() -> AudioLanguageModel:
    return small_model()
