"""Steps are made ahead in their order, no more of them than asked for, and slow files starve nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from torch.utils.data import Dataset

from afnext.training.data.prefetch import READERS, ahead

pytestmark = pytest.mark.slow

READ, TRAIN = 0.06, 0.03


class Slow(Dataset[int]):
    """Waits as for files on a network, the longer the less even the number is."""

    def __init__(self) -> None:
        self.most = self.now = 0
        self.lock = threading.Lock()

    def __getitem__(self, number: int) -> int:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(READ * (1.5 if number % 2 else 0.5))
        with self.lock:
            self.now -= 1
        if number == 77:
            raise ZeroDivisionError
        return number


def waited(dataset: Slow, count: int, depth: int, workers: int = 0) -> float:
    """The share of the time for which training waits, from the second step on."""
    made, waits = [], []
    steps = ahead(dataset, iter(range(count)), depth, workers)
    while True:
        began = time.perf_counter()
        number = next(steps, None)
        if number is None:
            break
        waits.append(time.perf_counter() - began)
        made.append(number)
        time.sleep(TRAIN)
    assert made == list(range(count))
    return sum(waits[1:]) / (sum(waits[1:]) + TRAIN * (count - 1))


def test_slow_files_starve_nobody() -> None:
    """A step takes twice as long to read as to train on. Made one at a time, half of the time is waiting; by
    readers that wait together 1 to 3 %, of the first steps, also where other programs use every core.
    """
    one = waited(Slow(), 40, 1)
    dataset = Slow()
    assert one > 0.4
    # Other programs may take a moment of one.
    assert any(waited(dataset, 40, 8) < 0.08 for _ in range(5))
    assert 1 < dataset.most <= READERS


def test_processes_read_too() -> None:
    """Of themselves they could make twice as much as is used; 1 to 9 % was seen on two busy cores."""
    assert any(waited(Slow(), 40, 8, 4) < 0.2 for _ in range(5))


@pytest.mark.parametrize("workers", [0, 1])
def test_plans_are_drawn_no_sooner_than_needed(workers: int) -> None:
    """What lies ahead takes memory: of a million steps a few are there."""
    drawn = []

    def plans() -> Iterator[int]:
        for number in range(1_000_000):
            drawn.append(number)
            yield number

    steps = ahead(Slow(), plans(), 3, workers)
    assert [next(steps) for _ in range(4)] == [0, 1, 2, 3]
    assert len(drawn) <= 4 + 3
    steps.close()


def test_what_fails_fails_in_its_turn() -> None:
    steps = ahead(Slow(), iter(range(70, 90)), 8)
    assert [next(steps) for _ in range(7)] == list(range(70, 77))
    with pytest.raises(ZeroDivisionError):
        next(steps)
