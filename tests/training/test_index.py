"""The index opens at once and takes no memory of its own, however long it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from afnext.errors import AfnextError
from afnext.training.data.entries import INDEX
from afnext.training.data.index import SCHEMA, Index
from afnext.training.data.write_index import write_index


def rows(count: int) -> list[pa.RecordBatch]:
    """``count`` records, three an entry but for the last."""
    number = np.arange(count)
    columns = {
        "key": pa.array([f"{i}" for i in range(count)], pa.large_string()),
        "shard": number // 1000, "offset": number % 1000 * 100, "size": np.full(count, 90),
        "duration": number // 3 / 10, "characters": number % 50, "source": np.zeros(count),
        "entry": number // 3,
    }  # fmt: skip
    return pa.table(columns).cast(SCHEMA).to_batches(max_chunksize=1000)


def test_entries(tmp_path: Path) -> None:
    write_index(tmp_path, rows(3001), ["a", "b", "c", "d"], ["given.json"])
    index = Index(tmp_path)
    assert (len(index), index.records, index.shards) == (1001, 3001, ["a", "b", "c", "d"])
    entry = index[500]
    assert [(p.file, p.offset, p.size) for p in entry.records] == [
        (1, 500 * 100, 90), (1, 501 * 100, 90), (1, 502 * 100, 90),
    ]  # fmt: skip
    assert (entry.seconds, entry.characters) == (50.0, (0, 1, 2))
    assert index[-1] == index[1000]
    assert len(index[1000].records) == 1
    assert index.keys(500) == ["1500", "1501", "1502"]
    part = index.up_to(50.0)
    assert (len(part), part[-1], list(part[::250])) == (501, entry, [index[0], index[250], entry])
    assert (part.records, index.up_to(200.0).records) == (1503, 3001)
    with pytest.raises(IndexError):
        index[1001]


def test_none(tmp_path: Path) -> None:
    write_index(tmp_path, rows(0), [], [])
    assert len(Index(tmp_path)) == len(Index(tmp_path).up_to(1e9)) == 0
    assert Index(tmp_path).records == 0


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AfnextError, match="cannot open the index"):
        Index(tmp_path)
    write_index(tmp_path, rows(30), ["a"], ["b"])
    content = (tmp_path / INDEX).read_bytes()
    for broken in (b"", b"ARROW1", content[: len(content) // 2], content[:-4]):
        (tmp_path / INDEX).write_bytes(broken)
        with pytest.raises(AfnextError):
            Index(tmp_path)
    other = pa.table({"key": ["a"]})
    with pa.OSFile(str(tmp_path / INDEX), "wb") as file, pa.ipc.new_file(file, other.schema) as out:
        out.write_table(other)
    with pytest.raises(AfnextError, match="no index of format"):
        Index(tmp_path)


def test_a_sample_is_of_the_part_and_has_its_mean(tmp_path: Path) -> None:
    """However small the part: also where the index's metadata tell of few of its entries, or of none."""
    write_index(tmp_path, rows(30_001), ["a"], ["b"])
    index = Index(tmp_path)
    for part in (index, index.up_to(900.0), index.up_to(40.0), index.up_to(0.0)):
        some = part.sample()
        assert 0 < len(some) <= len(part)
        assert max(entry.seconds for entry in some) <= part[-1].seconds
        for value in (lambda e: e.seconds, lambda e: e.tokens(range(len(e.characters)))):
            wanted = sum(map(value, part)) / len(part)
            assert sum(map(value, some)) / len(some) == pytest.approx(wanted, rel=0.03, abs=0.01)


MEASURE = """
import re, sys, time
from pathlib import Path
from afnext.training.data.index import Index
from afnext.training.data.mixture import Mixture

class Source:
    def __init__(self, path):
        self.entries = Index(path)

def memory(kind):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(kind + r":\\s+(\\d+)", status)[1])

Index(sys.argv[1])
mapped = memory("VmRSS")
Mixture({"a": Source(sys.argv[1])}, {"a": 1.0}, 1e5)
mapped = memory("VmRSS") - mapped
before, began = memory("RssAnon"), time.perf_counter()
index = Index(sys.argv[1])
for i in range(0, len(index), len(index) // 1000):
    index[i]
len(index.up_to(1e5))
print(time.perf_counter() - began, memory("RssAnon") - before, mapped)
"""


@pytest.mark.sweep
def test_ten_million_records_open_at_once_in_no_more_memory(tmp_path: Path) -> None:
    found = {}
    for count in (1_000_000, 10_000_000):
        folder = tmp_path / str(count)
        folder.mkdir()
        write_index(folder, rows(count), [str(i) for i in range(count // 1000)], ["given.json"])
        run = [sys.executable, "-c", MEASURE, str(folder)]
        seconds, grown, mapped = map(float, subprocess.check_output(run, text=True).split())
        assert seconds < 2
        found[count] = grown
        assert mapped < 24 << 20, "a mixture brings the file into memory"
    # Pages of the file are the page cache's; what is the process's own must not follow the count.
    assert abs(found[10_000_000] - found[1_000_000]) < 8 << 20
