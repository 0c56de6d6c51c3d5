"""Keys and values on disk: the next session reads them, damage and death change no answer."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import afnext
from afnext.audio import AudioWindow
from afnext.engine import DiskCache, Engine, Generation, GenerationParams
from afnext.engine.engine import PAGE_SIZE
from afnext.engine.pages import PagePool, page_bytes
from afnext.model import AudioLanguageModel
from tests.engine.models import heard, recomputed, small_model, window

pytestmark = pytest.mark.slow

SIX = GenerationParams(max_tokens=6)
CLIP = window(8.0)  # 200 tokens
CACHED = (1 + CLIP.num_tokens) // PAGE_SIZE * PAGE_SIZE


def new_engine(net: AudioLanguageModel, folder: Path, **limits: Any) -> Engine:
    return Engine(net, [], disk_cache=DiskCache(folder, "model"), **limits)


def ask(engine: Engine, *question: int, clip: AudioWindow = CLIP) -> Generation:
    return engine.submit(heard([clip], [1], question), [clip], SIX).result()


def prepare(net: AudioLanguageModel, folder: Path) -> None:
    engine = new_engine(net, folder)
    ask(engine, 3, 4)
    engine.flush()


def files(folder: Path) -> list[Path]:
    """The pages' files, the first page's last."""
    size = page_bytes(small_model().config.text, PAGE_SIZE, torch.float32)
    found = [p for p in folder.rglob("*.safetensors") if size <= p.stat().st_size < size + 500]
    return sorted(found, key=lambda p: p.stat().st_mtime_ns)


@pytest.mark.parametrize(
    "limits", [{}, {"max_step_tokens": 64}, {"max_step_tokens": 8, "max_running": 2}]
)
def test_a_later_session_reads_what_it_would_compute(
    net: AudioLanguageModel, tmp_path: Path, limits: dict[str, int]
) -> None:
    prepare(net, tmp_path)
    assert len(files(tmp_path)) == CACHED // PAGE_SIZE
    engine = new_engine(net, tmp_path, **limits)
    record = ask(engine, 5, 6, 7)
    assert record.tokens == recomputed(net, heard([CLIP], [1], [5, 6, 7]), [CLIP], 6)
    assert record.cached_tokens == CACHED
    stats = engine.stats()
    assert (stats.restored_tokens, stats.audio_misses) == (CACHED, 0)
    assert stats.disk_hits == CACHED // PAGE_SIZE + 1  # and the window, for the rest of it
    assert stats.free_pages == stats.pages
    again = ask(engine, 8)
    assert again.cached_tokens == CACHED  # from memory now
    assert engine.stats().restored_tokens == CACHED


def test_pages_of_8_bits_come_back_with_their_scales(
    net: AudioLanguageModel, tmp_path: Path
) -> None:
    engine = new_engine(net, tmp_path, kv_cache_dtype="int8")
    said = [ask(engine, 3, 4).tokens, ask(engine, 5, 6, 7).tokens]
    engine.flush()
    later = new_engine(net, tmp_path, kv_cache_dtype="int8")
    assert [ask(later, 3, 4).tokens, ask(later, 5, 6, 7).tokens] == said
    assert later.stats().restored_tokens == CACHED
    wide = new_engine(net, tmp_path)  # of another layout: nothing is found
    ask(wide, 3, 4)
    assert wide.stats().restored_tokens == 0


def test_a_page_is_read_and_written_whole() -> None:
    config = small_model().config.text
    pool = PagePool(config, 3, PAGE_SIZE, torch.int8, torch.device("cpu"))
    for tensor in pool.tensors:
        tensor.copy_(torch.randint(-100, 100, tensor.shape))
    before = pool.read(1)
    assert len(before) == pool.page_bytes == page_bytes(config, PAGE_SIZE, torch.int8)
    pool.write(2, before)
    assert all(torch.equal(tensor[1], tensor[2]) for tensor in pool.tensors)


def test_others_are_answered_meanwhile(net: AudioLanguageModel, tmp_path: Path) -> None:
    prepare(net, tmp_path)
    engine, other = new_engine(net, tmp_path, max_step_tokens=32, max_running=8), window(2.0, 5)
    prompts = [
        (heard([CLIP], [1], [5]), [CLIP]),
        (heard([other], [1], [5]), [other]),
        (heard([CLIP], [1], [5, 6]), [CLIP]),
        ([7] * 40, []),
    ]
    handles = [engine.submit(ids, windows, SIX) for ids, windows in prompts]
    for handle, (ids, windows) in zip(handles, prompts, strict=True):
        assert handle.result().tokens == recomputed(net, ids, windows, 6)
    assert engine.stats().free_pages == engine.stats().pages


def test_cancelled_while_it_is_read(net: AudioLanguageModel, tmp_path: Path) -> None:
    prepare(net, tmp_path)
    engine = new_engine(net, tmp_path)
    handle = engine.submit(heard([CLIP], [1], [5]), [CLIP], SIX)
    load = engine.disk_cache.load

    def cancelling(*arguments: object) -> object:
        handle.cancel()
        return load(*arguments)

    engine.disk_cache.load = cancelling
    assert handle.result().stopped == "cancelled"
    assert engine.stats().free_pages == engine.stats().pages


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "another", "gone"])
@pytest.mark.parametrize("number", [0, 2])
def test_what_is_damaged_is_computed(
    net: AudioLanguageModel, tmp_path: Path, damage: str, number: int
) -> None:
    prepare(net, tmp_path)
    in_order = files(tmp_path)[::-1]
    path = in_order[number]
    data = bytearray(path.read_bytes())
    if damage == "changed":
        data[-2] ^= 1
    path.write_bytes(data[:-5] if damage == "cut" else b"" if damage == "empty" else data)
    if damage == "another":  # something whole, but no page
        DiskCache(tmp_path, "model").save(_key_of(path), torch.zeros(3, dtype=torch.uint8))
    if damage == "gone":
        path.unlink()
    engine = new_engine(net, tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        record = ask(engine, 5, 6)
    assert record.tokens == recomputed(net, heard([CLIP], [1], [5, 6]), [CLIP], 6)
    assert record.cached_tokens == number * PAGE_SIZE
    assert any("damaged" in str(w.message) for w in told) == (damage != "gone")
    engine.flush()
    assert ask(new_engine(net, tmp_path), 5, 6).cached_tokens == CACHED  # and written again


def _key_of(path: Path) -> bytes:
    return bytes.fromhex(path.stem.rpartition("-")[2])


def test_only_the_same_prompt_model_and_layout_is_found(tmp_path: Path) -> None:
    net = small_model()
    prepare(net, tmp_path)
    for other in (window(8.0, 1), window(8.0, start=30.0)):
        record = ask(new_engine(net, tmp_path), 3, 4, clip=other)
        assert record.cached_tokens == 0
    engine = Engine(net, [], disk_cache=DiskCache(tmp_path, "another"))
    assert ask(engine, 3, 4).cached_tokens == 0
    engine = new_engine(small_model().bfloat16(), tmp_path)
    assert ask(engine, 3, 4).cached_tokens == 0


def test_changed_weights_neither_read_nor_write(tmp_path: Path) -> None:
    net = small_model()
    prepare(net, tmp_path)
    engine = new_engine(net, tmp_path)
    with torch.no_grad():
        net.language_model.model.layers[0].self_attn.v_proj.weight.mul_(1.5)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")}
    record = ask(engine, 5)
    assert record.cached_tokens == 0
    assert record.tokens == recomputed(net, heard([CLIP], [1], [5]), [CLIP], 6)
    engine.flush()
    assert {p: p.read_bytes() for p in tmp_path.rglob("*.safetensors")} == before


def test_a_full_disk_is_a_warning(
    net: AudioLanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = new_engine(net, tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("afnext.engine.disk_cache.Path.mkdir", full)

    def asked() -> Generation:
        record = ask(engine, 5)
        engine.flush()
        return record

    with pytest.warns(UserWarning, match="No space left"):
        record = asked()
    assert record.tokens == recomputed(net, heard([CLIP], [1], [5]), [CLIP], 6)
    assert ask(engine, 6).stopped == "length"


def test_a_bounded_folder_keeps_the_beginning(net: AudioLanguageModel, tmp_path: Path) -> None:
    prepare(net, tmp_path / "all")
    size = files(tmp_path / "all")[0].stat().st_size
    disk = DiskCache(tmp_path / "few", "model", max_bytes=size * 7 // 2)
    engine = Engine(net, [], disk_cache=disk, audio_cache_bytes=0)
    disk.save(b"older", torch.zeros(10))
    ask(engine, 3, 4)
    engine.flush()
    assert (
        sum(p.stat().st_size for p in (tmp_path / "few").rglob("*.safetensors")) <= disk.max_bytes
    )
    record = ask(new_engine(net, tmp_path / "few"), 5)
    assert 0 < record.cached_tokens < CACHED
    assert record.tokens == recomputed(net, heard([CLIP], [1], [5]), [CLIP], 6)


def test_pages_give_back_their_bytes() -> None:
    text = small_model().config.text
    for dtype in (torch.float32, torch.bfloat16):
        pool = PagePool(text, 4, PAGE_SIZE, dtype, torch.device("cpu"))
        for t in pool.tensors:
            t.copy_(torch.randn(t.shape))
        data = pool.read(1)
        assert data.shape == (page_bytes(text, PAGE_SIZE, dtype),)
        pool.write(2, data)
        assert all(torch.equal(t[1], t[2]) and not torch.equal(t[1], t[3]) for t in pool.tensors)
        with pytest.raises(ValueError, match="data: must be uint8"):
            pool.write(2, data[:-1])


def test_killed_while_writing_the_next_session_is_right(tmp_path: Path) -> None:
    """Killed at moments all over the writing: what is there is whole, and no answer changes."""
    net = small_model()
    code = f"""
import sys
from pathlib import Path
from tests.engine.models import heard, small_model, window
from tests.engine.test_page_store import CLIP, SIX, new_engine
net, folder = small_model(), Path({str(tmp_path)!r})
print("ready", flush=True)
for seed in range(1000):
    engine, clip = new_engine(net, folder), CLIP if seed == 0 else window(8.0, seed)
    engine.submit(heard([clip], [1], [3]), [clip], SIX).result()
    print("asked", flush=True)
    engine.flush()
"""
    expected = recomputed(net, heard([CLIP], [1], [5, 6]), [CLIP], 6)
    for asked in (1, 2, 3):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(asked):
            assert process.stdout.readline() == "asked\n"
        process.kill()
        process.wait()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            record = ask(new_engine(net, tmp_path), 5, 6)
        assert record.tokens == expected
    assert files(tmp_path)


def test_load_and_ask_again(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(160_000).astype(np.float32) * 0.01
    texts = []
    for restored in (False, True):
        model = afnext.load("nano", disk_cache=tmp_path)
        texts.append(model.ask(noise, "What is it?", max_tokens=5, temperature=0.0).text)
        model.engine.flush()
        assert (model.engine.stats().restored_tokens > 0) == restored
    assert texts[0] == texts[1]
