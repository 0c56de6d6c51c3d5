"""Snapshots of the hub: whole ones are used as they are, parts of one are completed, or named offline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from safetensors.torch import save_file

from afnext.errors import CheckpointError
from afnext.hub import find_adapter, find_model
from afnext.model import AudioLanguageModel
from afnext.model.adapter import CONFIG, WEIGHTS

ID = "someone/some-model"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nano in several files."""
    folder = tmp_path_factory.mktemp("hub") / "whole"
    nano = find_model("nano")
    AudioLanguageModel.from_pretrained(nano).save_pretrained(folder, max_shard_bytes=5_000_000)
    shutil.copy(nano / "tokenizer.json", folder)
    return folder


class Hub:
    """In the place of the network: a snapshot that has ``whole`` once it was downloaded."""

    def __init__(self, snapshot: Path, whole: Path) -> None:
        self.snapshot, self.whole, self.downloads = snapshot, whole, 0

    def __call__(self, source: str, *, local_files_only: bool, **options: object) -> str:
        assert source == ID
        if not local_files_only:
            self.downloads += 1
            shutil.copytree(self.whole, self.snapshot, dirs_exist_ok=True)
        return str(self.snapshot)


@pytest.fixture
def hub(tmp_path: Path, sharded: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "snapshot", sharded)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    return hub


def test_what_is_whole_is_not_downloaded_again(hub: Hub) -> None:
    shutil.copytree(hub.whole, hub.snapshot)
    assert find_model(ID) == hub.snapshot
    assert hub.downloads == 0


@pytest.mark.parametrize("lacks", ["shard", "index", "config.json", "tokenizer.json", "weights"])
def test_a_download_that_was_cut_short_is_gone_on_with(hub: Hub, lacks: str) -> None:
    shutil.copytree(hub.whole, hub.snapshot)
    shards = sorted(hub.snapshot.glob("*.safetensors"))
    assert len(shards) > 2
    index = [hub.snapshot / "model.safetensors.index.json", *shards[1:]]
    several = {"shard": shards[1:], "weights": shards, "index": index}
    missing = several.get(lacks, [hub.snapshot / lacks])
    for file in missing:
        file.unlink()
    assert find_model(ID) == hub.snapshot
    assert hub.downloads == 1
    assert all(file.is_file() for file in missing)


def test_offline_a_part_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(hub.whole, hub.snapshot)
    sorted(hub.snapshot.glob("*.safetensors"))[0].unlink()
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    with pytest.raises(CheckpointError, match="in the local cache in part, and HF_HUB_OFFLINE"):
        find_model(ID)


def test_what_the_hub_has_no_more_of_is_for_the_reader_to_judge(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    hub.whole = tmp_path / "odd"
    hub.snapshot.mkdir()
    assert find_model(ID) == hub.snapshot


def test_an_adapter_is_two_files(hub: Hub, tmp_path: Path) -> None:
    hub.whole = tmp_path / "adapter"
    hub.whole.mkdir()
    (hub.whole / CONFIG).write_text(json.dumps({}))
    save_file({}, hub.whole / WEIGHTS)
    hub.snapshot.mkdir()
    (hub.snapshot / CONFIG).write_text(json.dumps({}))
    for _ in range(2):
        assert find_adapter(ID) == hub.snapshot
        assert hub.downloads == 1
