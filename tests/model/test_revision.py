"""What tells one training of a model from another, wherever its folder lies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from afnext.errors import CheckpointError
from afnext.hub import find_model
from afnext.model.revision import revision


def test_copies_are_the_same_and_trained_ones_are_not(tmp_path: Path) -> None:
    nano = find_model("nano")
    copy = shutil.copytree(nano, tmp_path / "copy")
    weights = copy / "model.safetensors"
    os.utime(weights, (0, 0))
    (copy / "README.md").write_text("Our own card.")
    found = [revision(nano)]
    assert revision(copy) == found[0]
    tensors = load_file(weights)
    save_file({n: t * 1.02 for n, t in tensors.items()}, weights, {"format": "pt"})
    found.append(revision(copy))
    (copy / "generation_config.json").write_text('{"temperature": 0.5}')
    found.append(revision(copy))
    assert len(set(found)) == 3
    weights.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        revision(copy)
