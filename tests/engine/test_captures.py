"""Graphs are captured on their own device's streams, and no copy from a GPU falls into a capture. The device
is played: what can be seen of it without one is in which order it is asked for what."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from afnext.engine import DiskCache
from afnext.engine.captures import CAPTURING, Captures
from afnext.engine.page_store import PageStore

SECOND = torch.device("cuda", 1)


class Stream:
    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait_stream(self, other: Stream) -> None:
        assert self.device == other.device


class PlayedDevices:
    """torch.cuda, as far as a capture needs it: which device and stream are current, what was captured."""

    def __init__(self) -> None:
        self.at = torch.device("cuda", 0)
        self.streams = [Stream(self.at)]
        self.captures: list[tuple[torch.device, Stream, str]] = []

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before, self.at = self.at, device
        try:
            yield
        finally:
            self.at = before

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams.pop()

    @contextmanager
    def graph(
        self, _: object, pool: object, stream: Stream, *, capture_error_mode: str
    ) -> Iterator[None]:
        assert pool == "memory"
        assert CAPTURING.locked()  # from before it waits for the device
        assert not gc.isenabled()  # a graph among garbage would end the capture with its own end
        self.captures.append((self.at, stream, capture_error_mode))
        with self.stream(stream):
            yield
        assert CAPTURING.locked()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> PlayedDevices:
    played = PlayedDevices()
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, getattr(played, name))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "memory")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay="replay"))
    return played


def test_a_graph_is_of_its_device_whichever_is_current(cuda: PlayedDevices) -> None:
    seen: list[tuple[Any, Stream, bool]] = []
    captures = Captures(SECOND)
    for _ in range(2):
        replay = captures(lambda: seen.append((cuda.at, cuda.streams[-1], CAPTURING.locked())))
        assert replay == "replay"
    assert [mode for *_, mode in cuda.captures] == ["thread_local"] * 2
    assert {at for at, *_ in cuda.captures} == {SECOND}
    (stream,) = {stream for _, stream, _ in cuda.captures}  # one memory, one stream
    assert stream.device == SECOND
    assert {(at, own.device) for at, own, _ in seen} == {(SECOND, SECOND)}
    # The first two calls warm up, on another stream, while others may copy.
    assert [own is stream for _, own, _ in seen] == [False, False, True] * 2
    assert [locked for *_, locked in seen] == [False, False, True] * 2
    assert gc.isenabled()
    assert cuda.at.index == 0


def test_a_capture_that_fails_holds_up_nobody(cuda: PlayedDevices) -> None:
    def work() -> None:
        if CAPTURING.locked():
            raise RuntimeError("cannot be captured")

    with pytest.raises(RuntimeError, match="cannot be captured"):
        Captures(SECOND)(work)
    assert not CAPTURING.locked()
    assert cuda.at.index == 0


def test_pages_are_not_read_while_a_graph_is_captured(tmp_path: Path) -> None:
    """And the engine's lock is free meanwhile: who captures is not the only one that goes on."""
    read = Event()

    def page(_: int) -> torch.Tensor:
        assert CAPTURING.locked()
        read.set()
        return torch.zeros(8, dtype=torch.uint8)

    pool: Any = SimpleNamespace(read=page, tensors=[torch.zeros(1, 8)])
    allocator: Any = SimpleNamespace(find=lambda _: 0)
    lock, disk = Condition(), DiskCache(tmp_path, "model")
    store = PageStore(disk, allocator, lock)
    with CAPTURING:
        store.keep(pool, [b"digest"])
        assert not read.wait(0.2)
        assert lock.acquire(timeout=1)
        lock.release()
    store.flush()
    assert read.is_set()
    assert len(list(tmp_path.iterdir())) == 1
    assert not CAPTURING.locked()
