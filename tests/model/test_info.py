"""Sizes of the release, against the published numbers, without allocating the model."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from afnext.errors import CheckpointError
from afnext.model.info import ModelInfo, geometry


def test_release() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    info = ModelInfo.of(geometry("7b"))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert info.parameters == 8_267_215_360
    assert info.tensors == 830
    assert info.parts == {
        "encoder": 636_968_960,
        "adaptor": 17_439_744,
        "decoder": 7_069_214_208,
        "head": 543_592_448,
    }
    assert info.weight_bytes["bfloat16"] == 16_534_430_720
    assert info.kv_bytes_per_token["bfloat16"] == 57_344
    assert info.audio_tokens_per_minute == 1_500
    assert grown < 1 << 20  # KiB: far below the smallest part of the model


def test_counts_equal_transformers(pair: Any) -> None:
    info = ModelInfo.of(pair.ours.config)
    assert info.parameters == sum(p.numel() for p in pair.theirs.parameters())
    assert info.tensors == len(list(pair.theirs.parameters()))
    assert sum(info.parts.values()) == info.parameters


def test_unknown_geometry() -> None:
    with pytest.raises(CheckpointError, match="7b"):
        geometry("8b")
