"""Records with single files become a training set in shards that says and sounds the same."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from afnext.chat import Tokenizer
from afnext.chat.variants import detect_variant, template_of
from afnext.errors import AfnextError
from afnext.hub import EMBEDDED
from afnext.training import archive as module
from afnext.training.archive import archive
from afnext.training.data.index import Index
from afnext.training.data.mixture import Mixture
from afnext.training.data.packing import encode
from afnext.training.data.sources import Source
from afnext.training.run.state import Cursors

RATE = 16_000
LENGTHS = {"a.wav": 2.5, "b.wav": 1.0, "c.wav": 4.0}


def record(name: str, question: str, *sounds: str) -> dict:
    tags = (
        "<sound>\n"
        if len(sounds) == 1
        else "".join(f"<sound-{i}>\n" for i in (1, 2)[: len(sounds)])
    )
    turns = [{"from": "human", "value": tags + question}, {"from": "gpt", "value": f"{name}!"}]
    made: dict = {"id": name, "conversations": turns}
    return made | ({"sound": sounds[0] if len(sounds) == 1 else list(sounds)} if sounds else {})


RECORDS = [
    record("0", "What?", "a.wav"),
    record("1", "When?", "c.wav"),
    record("2", "Who?", "a.wav"),
    record("3", "Two and two?"),
    record("4", "Same?", "b.wav", "c.wav"),
]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Records as Audio Flamingo 3 publishes them, beside a folder of recordings."""
    folder = tmp_path / "given"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, seconds in LENGTHS.items():
        samples = rng.uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)
        soundfile.write(folder / name, samples, RATE, subtype="PCM_16")
    (folder / "records.json").write_text(json.dumps(RECORDS))
    return folder / "records.json"


def members(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return tar.getnames()


def said(source: Source) -> dict[str, tuple]:
    found = {}
    for entry in source.entries:
        for item in source.conversations(entry, range(len(entry.records))):
            sounds = [
                np.concatenate(
                    [w.samples[: w.valid_samples] for w in source.windows(path)]
                ).tobytes()
                for path in item.sounds
            ]
            found[item.id] = ([turn.text for turn in item.turns], sounds, item.duration or 0.0)
    return found


def test_it_says_and_sounds_the_same(given: Path, tmp_path: Path) -> None:
    done = archive([given], tmp_path / "set", shard_seconds=3)
    assert (done.records, done.recordings, done.seconds) == (5, 3, 7.5)
    before, after = Source(given), Source(tmp_path / "set")
    was, now = said(before), said(after)
    assert was.keys() == now.keys() == {"0", "1", "2", "3", "4"}
    for name, (texts, sounds, _) in was.items():
        assert now[name][:2] == (texts, sounds)
    assert {n: seconds for n, (_, _, seconds) in now.items()} == {
        "0": 2.5, "1": 4.0, "2": 2.5, "3": 0.0, "4": 5.0,
    }  # fmt: skip
    assert sorted(e.seconds for e in before.entries) == [e.seconds for e in after.entries]


def test_a_recording_is_kept_once(given: Path, tmp_path: Path) -> None:
    archive([given], tmp_path / "set", shard_seconds=3)
    shards = sorted((tmp_path / "set").glob("*.tar"))
    names = [name for path in shards for name in members(path)]
    assert len(shards) == 2
    assert [n for n in names if n.endswith(".flac")] == [f"{i:09}.flac" for i in range(3)]


def test_records_of_a_recording_are_one_entry(given: Path, tmp_path: Path) -> None:
    archive([given], tmp_path / "set")
    index = Index(tmp_path / "set")
    keys = [index.keys(i) for i in range(len(index))]
    assert keys == [["3"], ["0", "2"], ["1"], ["4"]]  # by their duration
    assert [len(index.up_to(s)) for s in (0.0, 2.4, 2.5, 4.9, 5.0)] == [1, 1, 2, 3, 4]
    assert index.sources == [str(given)]


def test_draws_come_from_the_index(given: Path, tmp_path: Path) -> None:
    archive([given], tmp_path / "set")
    source = Source(tmp_path / "set")
    mixture = Mixture({"all": source}, {"all": 1.0}, longest=4.0)
    drawn, after = mixture.draw(5000, "seed", Cursors())
    assert (drawn, after) == mixture.draw(5000, "seed", Cursors())
    ids = {item.id for d in drawn for item in source.conversations(d.entry, d.chosen)}
    assert ids == {"0", "1", "2", "3"}


@pytest.mark.parametrize(("encoding", "most"), [("wav", 0.0), ("flac", 0.0), ("opus", 0.6)])
def test_encodings(encoding: str, most: float, given: Path, tmp_path: Path) -> None:
    """Opus is judged on noise here, where it is at its worst: the length is right, and nothing is wild."""
    archive([given], tmp_path / "set", encoding=encoding)
    source = Source(tmp_path / "set")
    item = source.conversations(source.entries[1], [0])[0]
    samples = np.concatenate([w.samples[: w.valid_samples] for w in source.windows(item.sounds[0])])
    expected = soundfile.read(given.parent / "a.wav", dtype="float32")[0]
    assert item.sounds[0].endswith(encoding)
    assert samples.shape == expected.shape
    assert np.abs(samples - expected).max() <= most


def test_what_is_broken_is_left_out_and_counted(given: Path, tmp_path: Path) -> None:
    (given.parent / "c.wav").write_bytes(b"RIFF but no sound")
    bad = [*RECORDS, record("5", "What?", "missing.wav"), {"id": "6", "conversations": []}]
    given.write_text(json.dumps(bad))
    done = archive([given], tmp_path / "set", most_skipped=0.6)
    assert done.records == 3
    assert dict(done.skipped.counts) == {
        "a recording cannot be read": 3, "conversations must be a list of turns": 1,
    }  # fmt: skip
    assert said(Source(tmp_path / "set")).keys() == {"0", "2", "3"}


def test_too_much_that_is_broken_ends_it(given: Path, tmp_path: Path) -> None:
    (given.parent / "c.wav").write_bytes(b"RIFF but no sound")
    with pytest.raises(AfnextError, match=r"2 of 5 records cannot be used, more than 30.0%"):
        archive([given], tmp_path / "set", most_skipped=0.3)
    with pytest.raises(AfnextError, match="no conversations"):  # not a set that lacks some
        Source(tmp_path / "set")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("broken", ["write_shard", "write_part", "write_index"])
def test_a_call_that_was_broken_off_goes_on(
    broken: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bytes as one that was not, with what was whole as it was; by its own arguments alone."""
    monkeypatch.setattr(module, "SHARD_RECORDS", 2)
    archive([given], tmp_path / "whole", shard_seconds=1)
    writes, made = getattr(module, broken), []

    def stop(*arguments: object) -> object:
        made.append(arguments)
        if len(made) == 2 or broken == "write_index":
            raise KeyboardInterrupt
        return writes(*arguments)

    folder = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr(module, broken, stop)
        with pytest.raises(KeyboardInterrupt):
            archive([given], folder, shard_seconds=1)
    if broken != "write_index":
        with pytest.raises(AfnextError, match="no conversations"):  # not a set that lacks some
            Source(folder)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*.tar")}
    assert len(kept) == (1 if broken == "write_shard" else 3)
    with pytest.raises(AfnextError, match="holds the beginning of a set of other"):
        archive([given], folder, shard_seconds=2)
    archive([given], folder, shard_seconds=1)
    assert content(folder) == content(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    with pytest.raises(AfnextError, match="holds a training set"):
        archive([given], folder, shard_seconds=1)


def test_a_shard_that_is_lost_meanwhile_is_written_again(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive([given], tmp_path / "whole", shard_seconds=1)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_part", stop)
        with pytest.raises(KeyboardInterrupt):
            archive([given], tmp_path / "set", shard_seconds=1)
    (tmp_path / "set" / "audio-00001.tar").unlink()
    archive([given], tmp_path / "set", shard_seconds=1)
    assert content(tmp_path / "set") == content(tmp_path / "whole")


@pytest.mark.parametrize("seconds", [1, 3, 100])
@pytest.mark.parametrize("lost", [["a.wav"], ["c.wav"], ["b.wav", "c.wav"], [*LENGTHS]])
def test_recordings_out_of_reach_are_tried_again(
    lost: list[str], seconds: int, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same bytes, wherever in a shard they belong; while they stay away nothing is written anew."""
    monkeypatch.setattr(module, "SHARD_RECORDS", 2)
    archive([given], tmp_path / "whole", shard_seconds=seconds)
    for name in lost:
        (given.parent / name).rename(tmp_path / name)
    folder = tmp_path / "set"
    times = []
    for _ in range(2):
        with pytest.raises(AfnextError, match="records cannot be used"):
            archive([given], folder, shard_seconds=seconds)
        times.append([path.stat().st_mtime_ns for path in sorted(folder.glob("*.tar"))])
    assert times[0] == times[1]
    for name in lost:
        (tmp_path / name).rename(given.parent / name)
    archive([given], folder, shard_seconds=seconds)
    assert content(folder) == content(tmp_path / "whole")


@pytest.mark.slow
def test_processes_write_the_same(given: Path, tmp_path: Path) -> None:
    archive([given], tmp_path / "one", shard_seconds=1)
    archive([given], tmp_path / "two", shard_seconds=1, processes=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_tokens_of_a_model(given: Path, tmp_path: Path) -> None:
    """They are those that are packed: of an entry with a recording, without the recording's own."""
    archive([given], tmp_path / "set", model="nano")
    source = Source(tmp_path / "set")
    tokenizer = Tokenizer.from_folder(EMBEDDED["nano"])
    template = template_of(EMBEDDED["nano"], detect_variant(EMBEDDED["nano"], {}), tokenizer)
    for entry in source.entries:
        items = source.conversations(entry, range(len(entry.records)))
        lengths = [
            len(encode(item, dict.fromkeys(item.sounds, 100), tokenizer, template).ids)
            - 100 * len(item.sounds)
            for item in items
        ]
        assert entry.text == tuple(lengths)
        assert entry.tokens([0], 25.0) == round(25 * entry.seconds + lengths[0])
    archive([given], tmp_path / "estimated")
    assert Source(tmp_path / "estimated").entries[0].text == ()


PEAK = """
import json, sys, tracemalloc
from pathlib import Path
import numpy as np
from afnext.audio.windows import AudioWindow
from afnext.training import archive as module
from afnext.training.data import write_index

def peak(folder: Path, count: int) -> int:
    with folder.with_suffix(".jsonl").open("w") as file:
        for i in range(count):
            said = [{"from": "human", "value": f"What is {i}?"}, {"from": "gpt", "value": f"{i}."}]
            record = {"id": str(i), "sound": f"{i // 2}.wav", "conversations": said}
            file.write(json.dumps(record) + chr(10))
    tracemalloc.start()
    module.archive([folder.with_suffix(".jsonl")], folder, shard_seconds=1)
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found

window = AudioWindow(np.zeros(160, np.float32), 0, 160, 0)
module.load = lambda *_, **__: [window]
module.SHARD_RECORDS = 500
module.ROWS = write_index.ROWS = write_index.SAMPLE = 100
write_index.MERGED_ROWS = 10
peak(Path(sys.argv[1]) / "first", 100)  # what is made once
print(json.dumps([peak(Path(sys.argv[1]) / str(count), count) for count in (2000, 6000)]))
"""


@pytest.mark.sweep
def test_memory_does_not_follow_the_number_of_records(tmp_path: Path) -> None:
    """Python's own, which lists and dictionaries of all records or recordings would be in."""
    small, large = json.loads(subprocess.check_output([sys.executable, "-c", PEAK, str(tmp_path)]))
    assert large - small < 4000 * 50, (small, large)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"encoding": "mp3"}, "encoding"),
        ({"most_skipped": 1.5}, "most_skipped"),
        ({"shard_seconds": 0}, "shard_seconds"),
        ({"processes": -1}, "processes"),
    ],
)
def test_misuse(options: dict, said: str, given: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        archive([given], tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()


def test_the_command(given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module.main([str(given), str(tmp_path / "set")])
    assert capsys.readouterr().out.endswith("5 records, 3 recordings, 0.00 h\n")
    with pytest.raises(SystemExit, match="holds a training set"):
        module.main([str(given), str(tmp_path / "set")])


@pytest.mark.parametrize("name", ["records-00000.conversations.jsonl", "audio-00001.tar"])
def test_what_it_did_not_write_it_does_not_write_over(
    given: Path, tmp_path: Path, name: str
) -> None:
    """Twice: a refusal must not leave what makes the next call take it for its own."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    for other in (name, "audio-0001.wav", "records-a.jsonl"):
        (folder / other).write_text("mine")
    for _ in range(2):
        with pytest.raises(AfnextError, match=f"{name}, which an archive would write over"):
            archive([given], folder)
    assert {path.read_text() for path in folder.iterdir()} == {"mine"}
    (folder / name).unlink()
    archive([given], folder)
    assert (
        (folder / "audio-0001.wav").read_text()
        == (folder / "records-a.jsonl").read_text()
        == "mine"
    )
