"""Shards: any recording at once, readable by others, whole or not there, broken ones named."""

from __future__ import annotations

import errno
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from afnext.errors import AfnextError, AudioError
from afnext.training.data.shards import Recording, Shard, is_whole, write_shard


def recordings(count: int = 5, seed: int = 0) -> Iterator[Recording]:
    """Of odd lengths, down to nothing."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        samples = rng.uniform(-0.9, 0.9, 777 * i).astype(np.float32)
        yield Recording(f"{i:04}", samples, 16_000, {"number": i, "name": "Müller"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "set-00003.tar"
    assert write_shard(path, recordings()) == 5
    return path


def test_what_was_written_is_read_in_any_order(path: Path) -> None:
    shard = Shard(path)
    assert shard.keys == ["0000", "0001", "0002", "0003", "0004"]
    original = {r.key: r for r in recordings()}
    for key in ("0003", "0000", "0004", "0003", "0001"):
        samples, rate = shard.audio(f"{key}.wav")
        assert rate == 16_000
        assert samples.dtype == np.float32
        assert np.abs(samples - original[key].samples).max(initial=0) <= 1 / 32768
        assert shard.labels(key) == {"number": int(key), "name": "Müller"}


def test_another_program_reads_the_same(path: Path) -> None:
    """Python's tarfile, from front to back: the members, in WebDataset's order, with the same content."""
    shard = Shard(path)
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == [
            f"{key}.{ending}" for key in shard.keys for ending in ("wav", "json")
        ]
        for member in members:
            file = tar.extractfile(member)
            assert file is not None
            content = file.read()
            assert content == shard.read(member.name)
            assert member.offset_data == shard.members[member.name].offset
        samples, rate = soundfile.read(io.BytesIO(shard.read("0002.wav")), dtype="int16")
        assert (len(samples), rate) == (1554, 16_000)


def test_the_same_recordings_give_the_same_bytes(path: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    write_shard(again, recordings())
    assert again.read_bytes() == path.read_bytes()
    write_shard(again, recordings(seed=1))
    assert again.read_bytes() != path.read_bytes()


def test_threads_share_a_shard(path: Path) -> None:
    shard = Shard(path)
    names = list(shard.members) * 40
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(shard.read, names)) == [shard.read(name) for name in names]


def test_other_formats_and_channels_are_read(path: Path) -> None:
    """A shard that somebody else made, of FLAC with two channels: the first is heard."""
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, (900, 2))
    flac = io.BytesIO()
    soundfile.write(flac, wave, 44_100, format="FLAC")
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("x.flac")
        member.size = len(flac.getvalue())
        tar.addfile(member, io.BytesIO(flac.getvalue()))
    index = {"format": 1, "bytes": path.stat().st_size, "members": {"x.flac": [512, member.size]}}
    path.with_suffix(".index.json").write_text(json.dumps(index))
    samples, rate = Shard(path).audio("x.flac")
    assert rate == 44_100
    assert samples == pytest.approx(wave[:, 0], abs=1 / 32768)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1024])


def _index(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        at = path.with_suffix(".index.json")
        content = json.loads(at.read_text())
        result = change(content)
        at.write_text(json.dumps(content if result is None else result))

    return apply


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_truncate, r"set-00003.tar is broken: \d+ bytes, its index says \d+"),
        (lambda path: path.unlink(), "cannot open .*set-00003.tar: No such file"),
        (lambda path: path.with_suffix(".index.json").unlink(), "cannot open .*.index.json: No such file"),
        (lambda path: path.with_suffix(".index.json").write_text("{"), "index.json is no index of a shard"),
        (lambda path: path.with_suffix(".index.json").write_bytes(b"\xff"), "index.json is no index"),
        (_index(lambda index: index.update(format=7)), "index of format 7, not 1"),
        (_index(lambda index: index.update(members=[])), "index.json is no index of a shard"),
        (_index(lambda index: index.update(members={"a": [1]})), "index.json is no index of a shard"),
        (_index(lambda index: index.pop("bytes") and None), "index.json is no index of a shard: 'bytes'"),
        (_index(lambda index: [index]), "index.json is no index of a shard"),
    ],
)  # fmt: skip
def test_a_broken_shard_is_named(path: Path, spoil: Callable[[Path], None], said: str) -> None:
    assert is_whole(path)
    spoil(path)
    with pytest.raises(AfnextError, match=said):
        Shard(path)
    assert not is_whole(path)


def test_a_broken_member_is_named(path: Path) -> None:
    shard = Shard(path)
    with pytest.raises(AfnextError, match=r"set-00003.tar has no 0009.json"):
        shard.labels("0009")
    with pytest.raises(AudioError, match=r"set-00003.tar has no 0009.wav"):
        shard.audio("0009.wav")
    for name in ("0002.wav", "0002.json"):
        member = shard.members[name]
        content = bytearray(path.read_bytes())
        content[member.offset : member.offset + member.size] = b"?" * member.size
        path.write_bytes(content)
    shard = Shard(path)
    with pytest.raises(AudioError, match=r"cannot read .*set-00003.tar/0002.wav"):
        shard.audio("0002.wav")
    with pytest.raises(AfnextError, match=r"set-00003.tar/0002.json is no JSON"):
        shard.labels("0002")
    assert shard.labels("0003")["number"] == 3  # the others are as they were


def test_a_shard_that_shrinks_while_it_is_read_is_named(path: Path) -> None:
    shard = Shard(path)
    _truncate(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(AfnextError, match=r"is broken: it ends within 0004.json"):
        shard.labels("0004")


class Full(tarfile.TarFile):
    """The disk is full after two recordings."""

    def addfile(self, tarinfo: tarfile.TarInfo, fileobj: Any = None) -> None:
        if tarinfo.name.startswith("0002"):
            raise OSError(errno.ENOSPC, "No space left on device")
        super().addfile(tarinfo, fileobj)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarfile, "open", Full.open)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(AfnextError, match=r"cannot write the shard .*a.tar: No space left"):
        write_shard(tmp_path / "a.tar", recordings())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_what_was_there(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the shard or its index does not fit, the old one is whole afterwards."""
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    write_text = Path.write_text

    def no_index(self: Path, text: str) -> int:
        write_text(self, text[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    for target, name, replacement in (
        (tarfile, "open", Full.open),
        (Path, "write_text", no_index),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, name, replacement)
            with pytest.raises(AfnextError, match="No space left"):
                write_shard(path, recordings(seed=1))
        assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before
        assert Shard(path).labels("0004")["number"] == 4


def test_what_fails_while_recordings_are_made_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[Recording]:
        yield from recordings(2)
        raise RuntimeError("no voice")

    with pytest.raises(RuntimeError, match="no voice"):
        write_shard(tmp_path / "a.tar", broken())
    assert list(tmp_path.iterdir()) == []


def test_a_key_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AfnextError, match=r"a.tar would have 0000 twice"):
        write_shard(tmp_path / "a.tar", [*recordings(2), *recordings(1)])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AfnextError, match=r"cannot write the shard .*x/a.tar: No such file"):
        write_shard(tmp_path / "x" / "a.tar", recordings())
