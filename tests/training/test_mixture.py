"""Mixtures: a walk through all of each source, in the shares that are wanted, a function of its state."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afnext.errors import AfnextError
from afnext.training.data.mixture import LOOKAHEAD, Draw, Mixture, best_fill
from afnext.training.data.permutation import Permutation
from afnext.training.data.sources import Source
from afnext.training.run.state import Cursors
from tests.training.test_sources import lines, record


def numbered(folder: Path, name: str, counts: list[int], seconds: float = 10.0) -> Source:
    """A source of recordings with so many records each, never opened."""
    return Source(lines(
        folder / f"{name}.jsonl",
        *(record(f"{i}?", f"{name} {r}.", f"{r}.wav", seconds)
          for r, n in enumerate(counts) for i in range(n)),
    ))  # fmt: skip


def walk(mixture: Mixture, tokens: int, steps: int, seed: str = "7/all") -> list[list[Draw]]:
    """The batches from the beginning on."""
    drawn, now = [], Cursors()
    for _ in range(steps):
        batch, now = mixture.draw(tokens, seed, now)
        drawn.append(batch)
    return drawn


@given(st.integers(1, 1000), st.text(max_size=8))
@settings(max_examples=40, deadline=None)
def test_a_permutation_has_every_number_once(size: int, key: str) -> None:
    made = Permutation(size, key)
    assert sorted(made[i] for i in range(size)) == list(range(size))
    for wrong in (-1, size):
        with pytest.raises(IndexError):
            made[wrong]


def test_permutations_are_as_random_as_drawn_ones() -> None:
    """Over keys each number is equally likely at each place, and pairs of neighbours are too: chi-square of
    the counts within 5 sigma of what uniform draws give."""
    keys = 2000
    for size in (2, 3, 7, 20):
        made = [Permutation(size, f"k{i}") for i in range(keys)]
        at = Counter((place, p[place]) for p in made for place in (0, size - 1))
        pairs = Counter((p[0], p[1]) for p in made)
        for counts, cells in ((at, 2 * size), (pairs, size * (size - 1))):
            expected = sum(counts.values()) / cells
            chi = sum((n - expected) ** 2 / expected for n in counts.values())
            chi += (cells - len(counts)) * expected
            assert chi < cells + 5 * (2 * cells) ** 0.5, (size, chi, cells)


def test_ten_million_entries_take_no_memory() -> None:
    made = Permutation(10_000_000, "x")
    some = [made[i] for i in range(0, 10_000_000, 1009)]
    assert len(set(some)) == len(some)
    assert abs(sum(some) / len(some) / 5e6 - 1) < 0.03  # 5 sigma
    assert sys.getsizeof(vars(made)) + sum(map(sys.getsizeof, vars(made).values())) < 5000


def test_an_epoch_has_every_entry_once(tmp_path: Path) -> None:
    """Those that wait for a batch are late, and there are few of them; nothing is lost or drawn twice."""
    sources = {"a": numbered(tmp_path, "a", [1] * 60), "b": numbered(tmp_path, "b", [1] * 7)}
    mixture = Mixture(sources, {"a": 3.0, "b": 1.0}, 30.0)
    now, seen = Cursors(), Counter()
    for _ in range(40):
        batch, now = mixture.draw(2000, "1", now)
        seen.update((d.source, d.entry.records) for d in batch)
        for name, source in sources.items():
            each = [seen[name, entry.records] for entry in source.entries]
            late = sum(waits[0] == name for waits in now.waiting)
            epochs, begun = divmod(now.drawn[name], len(each))
            assert sum(each) + late == now.drawn[name]
            assert sum(max(0, epochs - n) for n in each) <= late
            assert max(each) <= epochs + bool(begun)
    assert len(now.waiting) <= 2 * LOOKAHEAD
    assert min(seen.values()) > 2


def test_epochs_are_in_other_orders(tmp_path: Path) -> None:
    mixture = Mixture({"a": numbered(tmp_path, "a", [1] * 50)}, {"a": 1.0}, 30.0)
    order = [mixture._at("a", i, "1").entry.records for i in range(100)]
    assert set(order[:50]) == set(order[50:])
    assert sum(a == b for a, b in zip(order[:50], order[50:], strict=True)) < 8  # one is expected
    assert [mixture._at("a", i, "2").entry.records for i in range(50)] != order[:50]


def test_a_draw_is_a_function_of_its_state(tmp_path: Path) -> None:
    """Not of earlier draws, of the order in which sources were given, or of another process's hashes; and
    the state is the same when it comes back from JSON."""
    counts = [3] * 20

    def mixture(*names: str) -> Mixture:
        sources = {name: numbered(tmp_path, name, counts) for name in names}
        return Mixture(sources, {name: 1.0 + (name == "b") for name in names}, 30.0, 2)

    one, states = mixture("a", "b"), [Cursors()]
    drawn = []
    for _ in range(10):
        batch, after = one.draw(2000, "7", states[-1])
        drawn.append(batch)
        states.append(after)
    other = mixture("b", "a")
    random.seed(5)
    assert [other.draw(2000, "7", s)[0] for s in reversed(states[:-1])] == drawn[::-1]
    assert len({str(d) for d in drawn}) == 10
    state = json.dumps(asdict(states[3]))
    program = f"""
import json
from afnext.training.data.mixture import Mixture
from afnext.training.data.sources import Source
from afnext.training.run.state import Cursors
sources = {{n: Source({str(tmp_path)!r} + f"/{{n}}.jsonl") for n in "ab"}}
now = json.loads({state!r})
now = Cursors(now["drawn"], now["sizes"], tuple(map(tuple, now["waiting"])))
print(Mixture(sources, {{"a": 1.0, "b": 2.0}}, 30.0, 2).draw(2000, "7", now)[0])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          env={"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(sys.path)})  # fmt: skip
    assert done.stdout == f"{drawn[3]}\n"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 120))
@settings(max_examples=200, deadline=None)
def test_the_best_fill_is_the_best(sizes: list[int], tokens: int) -> None:
    chosen = best_fill(sizes, tokens)
    assert 0 in chosen
    total = sum(sizes[i] for i in chosen)
    subsets = [
        [i for i in range(len(sizes)) if bits >> i & 1] for bits in range(1, 1 << len(sizes), 2)
    ]
    sums = [sum(sizes[i] for i in subset) for subset in subsets]
    assert total == max((s for s in sums if s <= tokens), default=sizes[0])


def test_batches_come_near_their_budget(tmp_path: Path) -> None:
    """Recordings of 1 to 40 s in batches of 2000 tokens: the draws' own order leaves a quarter of the largest
    out, or goes beyond it."""
    rng = random.Random(4)
    records = [record("What?", "A dog.", f"{i}.wav", rng.uniform(1, 40)) for i in range(200)]
    mixture = Mixture({"a": Source(lines(tmp_path / "a.jsonl", *records))}, {"a": 1.0}, 60.0)
    totals = [sum(d.entry.tokens(d.chosen) for d in batch) for batch in walk(mixture, 2000, 60)]
    assert max(totals) <= 2000
    assert sum(totals) / len(totals) > 0.995 * 2000


def test_what_is_beyond_the_budget_is_drawn_alone(tmp_path: Path) -> None:
    records = [record("What?", "A dog.", f"{i}.wav", 100.0 if i == 3 else 2.0) for i in range(12)]
    source = Source(lines(tmp_path / "a.jsonl", *records))
    mixture = Mixture({"a": source}, {"a": 1.0}, 200.0)
    batches = walk(mixture, 500, 30)
    long = [batch for batch in batches if any(d.entry.seconds > 50 for d in batch)]
    assert long
    assert all(len(batch) == 1 for batch in long)


def test_weights_are_shares_of_tokens(tmp_path: Path) -> None:
    """Of two sources with equal weights the one with long recordings is drawn from as much less often."""
    sources = {
        "long": numbered(tmp_path, "long", [1] * 9, seconds=28.0),
        "short": numbered(tmp_path, "short", [1] * 9, seconds=2.0),
    }
    mixture = Mixture(sources, {"long": 1.0, "short": 1.0}, 30.0)
    totals: Counter[str] = Counter()
    for batch in walk(mixture, 20_000, 60):
        for d in batch:
            totals[d.source] += d.entry.tokens(d.chosen)
    assert totals["long"] / totals.total() == pytest.approx(0.5, abs=0.04)


def test_sources_of_like_recordings_are_drawn_as_often_as_they_weigh(tmp_path: Path) -> None:
    """Whatever the number of their recordings; within a source every recording as often as any other."""
    sources = {
        "large": numbered(tmp_path, "large", [1] * 50),
        "small": numbered(tmp_path, "small", [1] * 4),
        "other": numbered(tmp_path, "other", [1] * 4),
    }
    mixture = Mixture(sources, {"large": 1.0, "small": 3.0, "other": 0.0}, 30.0)
    drawn = [d for batch in walk(mixture, 26_000, 40) for d in batch]
    counts = Counter(d.source for d in drawn)
    assert len(drawn) > 3500
    assert counts["small"] / len(drawn) == pytest.approx(0.75, abs=0.03)  # 4 sigma
    assert set(counts) == {"large", "small"}
    each = Counter(id(d.entry) for d in drawn if d.source == "small")
    assert len(each) == 4
    assert max(each.values()) - min(each.values()) <= 2 * LOOKAHEAD


def test_of_a_recording_some_records_are_drawn(tmp_path: Path) -> None:
    """At most so many, none twice, in their order; over epochs each as often as the others."""
    mixture = Mixture({"a": numbered(tmp_path, "a", [9, 2])}, {"a": 1.0}, 30.0, per_recording=3)
    seen: Counter[int] = Counter()
    for draw in (mixture._at("a", number, "1") for number in range(36)):
        count = len(draw.entry.records)
        assert len(draw.chosen) == min(3, count)
        assert list(draw.chosen) == sorted(set(draw.chosen))
        assert max(draw.chosen) < count
        if count == 9:
            seen.update(draw.chosen)
    assert seen == dict.fromkeys(range(9), 6)


def test_of_some_sources_more_records_are_drawn(tmp_path: Path) -> None:
    sources = {name: numbered(tmp_path, name, [9]) for name in "ab"}
    mixture = Mixture(sources, dict.fromkeys("ab", 1.0), 30.0, 3, per_recording_of={"b": 8})
    assert [len(mixture._at(name, 0, "1").chosen) for name in "ab"] == [3, 8]
    with pytest.raises(AfnextError, match="per_recording_of: 'c' is not in the mixture"):
        Mixture(sources, {"a": 1.0}, 30.0, per_recording_of={"c": 8})


def test_what_is_too_long_is_left_out(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "x.jsonl",
        record("A?", "B.", "short.wav", 10.0),
        record("A?", "B.", "long.wav", 10.1),
        record("A?", "B.", ["c.wav", "d.wav"], 20.0),
        record("A?", "B."),
    )
    source = Source(path)
    short, all_of_it = (Mixture({"x": source}, {"x": 1.0}, longest) for longest in (10.0, 20.0))
    (drawn,) = walk(short, 20_000, 1)
    assert {d.entry.seconds for d in drawn} == {10.0, 0.0}
    assert short.left_out() == [
        "x: 2 of 4 records are longer than audio_seconds: 10 and are left out"
    ]
    assert all_of_it.left_out() == []
    (drawn,) = walk(all_of_it, 20_000, 1)
    assert {d.entry.seconds for d in drawn} == {10.0, 10.1, 20.0, 0.0}


def test_sources_may_come_and_go_but_not_change(tmp_path: Path) -> None:
    sources = {name: numbered(tmp_path, name, [1] * 5) for name in "abc"}
    both = Mixture(sources, {"a": 1.0, "b": 1.0}, 30.0)
    _, now = both.draw(1000, "1", Cursors())
    assert {name for name, _ in now.waiting} == {"a", "b"}
    _, after = Mixture(sources, {"b": 1.0, "c": 1.0}, 30.0).draw(1000, "1", now)
    assert set(after.drawn) == {"b", "c"}
    assert after.drawn["b"] >= now.drawn["b"]
    sources["a"] = numbered(tmp_path, "a", [1] * 6)
    with pytest.raises(
        AfnextError, match="a has 6 entries of at most 30 s, and had 5 when the stage"
    ):
        Mixture(sources, {"a": 1.0}, 30.0).draw(1000, "1", now)


@pytest.mark.parametrize(
    ("weights", "longest", "why"),
    [
        ({"a": 1.0, "c": 1.0}, 30.0, "no source is called 'c'; there are a, b"),
        ({"a": -1.0, "b": 1.0}, 30.0, "a's weight must be at least 0, got -1.0"),
        ({"a": 1.0, "b": 1.0}, 5.0, "all records of a are longer than audio_seconds: 5"),
        ({"a": 0.0}, 30.0, "no source has a weight above 0"),
        ({}, 30.0, "no source has a weight above 0"),
    ],
)
def test_impossible_mixtures_are_named(
    weights: dict[str, float], longest: float, why: str, tmp_path: Path
) -> None:
    sources = {name: numbered(tmp_path, name, [1]) for name in "ab"}
    with pytest.raises(AfnextError, match=f"mixture: {why}"):
        Mixture(sources, weights, longest)
