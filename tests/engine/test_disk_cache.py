"""Encoded audio on disk: found again, told apart, bounded; damage and full disks are warnings."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import afnext
from afnext.engine import DiskCache, Engine, GenerationParams, disk_cache
from afnext.engine.pages import page_bytes
from afnext.hub import find_model
from tests.engine.models import heard, small_model, window

pytestmark = pytest.mark.slow

ROWS = torch.arange(12, dtype=torch.float32).reshape(4, 3)


def test_a_window_is_found_again_by_its_model(tmp_path: Path) -> None:
    DiskCache(tmp_path / "new", "one").save(b"key", ROWS.bfloat16())
    found = DiskCache(tmp_path / "new", "one").load(b"key")
    assert found is not None
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, ROWS.bfloat16())
    assert DiskCache(tmp_path / "new", "one").load(b"other") is None
    assert DiskCache(tmp_path / "new", "two").load(b"key") is None


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_file_is_a_warning(tmp_path: Path, damage: str) -> None:
    store = DiskCache(tmp_path, "model")
    store.save(b"key", ROWS)
    path = store.path(b"key")
    data = bytearray(path.read_bytes())
    if damage == "changed":
        data[-2] ^= 1
    path.write_bytes(data[:-5] if damage == "cut" else b"" if damage == "empty" else data)
    with pytest.warns(UserWarning, match="damaged"):
        assert store.load(b"key") is None
    assert not path.exists()
    store.save(b"key", ROWS)
    assert store.load(b"key") is not None


def test_the_window_not_asked_for_in_longest_goes_first(tmp_path: Path) -> None:
    store = DiskCache(tmp_path, "model")
    store.save(b"a", ROWS)
    size = store.path(b"a").stat().st_size
    store = DiskCache(tmp_path, "model", max_bytes=int(3.3 * size))
    left, new = (store.path(b"a").with_name(f"afnext-{n:016x}.part") for n in (1, 2))
    left.write_bytes(b"of somebody who was killed")
    os.utime(left, (0, 0))
    new.write_bytes(b"of somebody who is writing")
    for age, key in enumerate((b"b", b"c")):
        store.save(key, ROWS)
        os.utime(store.path(key), (age, age))
    os.utime(store.path(b"a"), (0, 0))
    assert store.load(b"a") is not None
    store.save(b"d", ROWS)
    kept = {key for key in (b"a", b"b", b"c", b"d") if store.load(key) is not None}
    assert kept == {b"a", b"c", b"d"}
    assert list(tmp_path.rglob("*.part")) == [new]
    assert store.evictions == 2
    assert store.nbytes == 3 * size


def test_only_its_own_files_are_dropped(tmp_path: Path) -> None:
    """The folder may be one where weights lie, or downloads."""
    others = ["model.safetensors", "model-00001-of-00002.safetensors", "film.part", "3f/a.safetensors",
              "tmpabc.part", f"{'0' * 31}g-00.safetensors", f"sub/{'0' * 32}-00.safetensors"]  # fmt: skip
    older = f"{'0' * 32}-00.safetensors"  # as earlier versions named theirs
    for name in (*others, older):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(1000))
        os.utime(tmp_path / name, (0, 0))
    store = DiskCache(tmp_path, "model", max_bytes=1000)
    for key in (b"a", b"b", b"c"):
        store.save(key, torch.zeros(100))
    assert all((tmp_path / name).exists() for name in others)
    assert not (tmp_path / older).exists()
    assert store.load(b"c") is not None
    assert store.load(b"a") is None


def test_files_are_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        store = DiskCache(tmp_path, "model")
        store.save(b"a", ROWS)
    finally:
        os.umask(before)
    assert store.path(b"a").stat().st_mode & 0o777 == 0o640


def test_a_relative_folder_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = DiskCache("cache", "model")
    monkeypatch.chdir("elsewhere")
    store.save(b"a", ROWS)
    assert (tmp_path / "cache").is_dir()
    assert store.load(b"a") is not None


def test_what_cannot_be_read_now_is_a_warning_and_stays(tmp_path: Path) -> None:
    store = DiskCache(tmp_path, "model")
    store.save(b"a", ROWS)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.warns(UserWarning, match="cannot be read: Too many open files"):
            assert store.load(b"a") is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert store.load(b"a") is not None
    assert (store.hits, store.misses) == (1, 1)


def test_a_disk_that_was_full_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(disk_cache.time, "monotonic", lambda: now)
    store = DiskCache(tmp_path / "file" / "cache", "model")
    (tmp_path / "file").write_bytes(b"")
    with pytest.warns(UserWarning, match="for 5 minutes"):
        store.save(b"a", ROWS)
    (tmp_path / "file").unlink()
    store.save(b"a", ROWS)
    assert not store.writable
    assert store.load(b"a") is None
    now += disk_cache.PAUSE
    store.save(b"a", ROWS)
    assert store.load(b"a") is not None


def test_threads_and_others_may_fill_one_folder(tmp_path: Path) -> None:
    """What does not fit is dropped; nobody's writing ends anybody else's."""
    rows = torch.zeros(4096, dtype=torch.uint8)
    size = 4500  # of a file, about
    stores = [DiskCache(tmp_path, "model", max_bytes=10 * size) for _ in range(2)]

    def fill(number: int) -> None:
        for step in range(60):
            stores[number % 2].save(f"{number} {step}".encode(), rows)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(fill, range(4)))
    assert all(store.writable for store in stores)
    held = list(tmp_path.rglob("*.safetensors"))
    assert 5 <= len(held) <= 24  # each store counts what the other adds when it looks again
    assert not list(tmp_path.rglob("*.part"))


def test_another_config_or_device_is_another_model(tmp_path: Path) -> None:
    """Weights alone do not say what is computed of them."""
    folder = shutil.copytree(find_model("nano"), tmp_path / "model")
    noise = np.random.default_rng(0).standard_normal(60_000).astype(np.float32) * 0.1
    cache = tmp_path / "cache"

    def ask() -> afnext.Reply:
        model = afnext.load(folder, disk_cache=cache)
        reply = model.ask(noise, "What?", max_tokens=4)
        model.engine.flush()
        return reply

    ask()
    assert ask().usage.cached_tokens > 0
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"]["rope_theta"] = 3e4
    (folder / "config.json").write_text(json.dumps(config))
    assert ask().usage.cached_tokens == 0
    assert ask().usage.cached_tokens > 0


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    store = DiskCache(file / "folder", "model")
    with pytest.warns(UserWarning, match="kept on disk"):
        store.save(b"a", ROWS)
    store.save(b"b", ROWS)
    with pytest.raises(ValueError, match="max_bytes"):
        DiskCache(tmp_path, "model", max_bytes=-1)


def test_killed_while_writing_nothing_half_written_is_found(tmp_path: Path) -> None:
    code = f"""
import os, threading, torch
from afnext.engine import DiskCache
store = DiskCache({str(tmp_path)!r}, "model")
store.save(b"first", torch.ones(1000, 1000))
print("begun", flush=True)
number = 0
while True:
    store.save(bytes([number % 256]), torch.full((1000, 1000), float(number % 256)))
    number += 1
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.1)
    process.kill()
    process.wait()
    store = DiskCache(tmp_path, "model")
    assert store.load(b"first") is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(256):
            found = store.load(bytes([number]))
            assert found is None or bool((found == number).all())


def test_an_engine_of_the_next_day_does_not_encode(tmp_path: Path) -> None:
    net, clip = small_model(), window(2.0)
    ids, params = heard([clip], [1], [2]), GenerationParams(max_tokens=8)
    said = []
    for misses in (1, 0):
        engine = Engine(net, [], disk_cache=DiskCache(tmp_path, "model"))
        said.append(engine.submit(ids, [clip], params).result().tokens)
        engine.flush()
        assert engine.stats().audio_misses == misses
    assert said[0] == said[1]
    with torch.no_grad():
        net.audio_tower.conv1.weight.mul_(2.0)
    engine.submit(ids, [clip], params).result()
    assert engine.audio_cache.store is None  # it is of other weights
    assert engine.stats().audio_misses == 1


def test_what_caches_hold_and_dropped_is_told(tmp_path: Path) -> None:
    clips = [window(2.0, seed) for seed in range(3)]
    net = small_model()
    one = net.config.text.hidden_size * clips[0].num_tokens * 4
    engine = Engine(
        net,
        [],
        disk_cache=DiskCache(tmp_path, "model", max_bytes=2 * one),
        audio_cache_bytes=2 * one,
    )
    for clip in clips:
        engine.submit(heard([clip], [1], [2]), [clip], GenerationParams(max_tokens=1)).result()
    engine.flush()
    stats = engine.stats()
    assert (stats.audio_bytes, stats.audio_evictions) == (2 * one, 1)
    held = sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors"))
    assert 0 < held <= stats.disk_bytes <= 2 * one
    assert stats.disk_evictions > 0


def test_no_step_waits_for_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, go = DiskCache(tmp_path, "model"), threading.Event()
    save = store.save

    def slowly(*arguments: Any) -> None:
        assert go.wait(120)
        save(*arguments)

    monkeypatch.setattr(store, "save", slowly)
    engine, clip = Engine(small_model(), [], disk_cache=store), window(2.0)
    ids, params = heard([clip], [1], [2]), GenerationParams(max_tokens=8)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(engine.submit(ids, [clip], params).result)
        try:
            assert len(answer.result(60).tokens) == 8
            assert not list(tmp_path.rglob("*.safetensors"))
        finally:
            go.set()
    engine.flush()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1 + (len(ids) - 1) // 32


def test_load_takes_a_folder(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(20_000).astype(np.float32) * 0.01
    for name, misses in (("float32", 1), ("float32", 0), ("bfloat16", 1)):
        model = afnext.load("nano", dtype=name, disk_cache=tmp_path, cache_bytes=1 << 24)
        page = page_bytes(model.net.config.text, 32, model.engine.runner.dtype)
        assert model.engine.stats().pages == (1 << 24) // page
        model.ask(noise, "What?", max_tokens=1)
        assert model.engine.stats().audio_misses == misses, name
        model.engine.flush()
    assert len({p.name.partition("-")[0] for p in tmp_path.rglob("*.safetensors")}) == 2
