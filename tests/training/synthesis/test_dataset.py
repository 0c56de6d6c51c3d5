"""Training sets: the seed decides all of them, a killed call goes on, and answers follow from the labels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from afnext.errors import AfnextError
from afnext.training.data import conversations
from afnext.training.data.shards import Shard
from afnext.training.synthesis import banks as banks_module
from afnext.training.synthesis import dataset
from afnext.training.synthesis.__main__ import main
from afnext.training.synthesis.banks import Banks
from afnext.training.synthesis.dataset import SceneSet, generate
from afnext.training.synthesis.labels import from_json
from afnext.training.synthesis.scenes import compose
from afnext.training.synthesis.sentences import is_held_out
from afnext.training.synthesis.sounds import SAMPLE_RATE
from afnext.training.tasks import several, timeline
from afnext.training.tasks.script import script
from afnext.training.tasks.sounds import listing

pytestmark = pytest.mark.slow

SETS = [
    SceneSet("sounds", 40, 1.0, 4.0),
    SceneSet("mixed", 6, 5.0, 9.0, questions=12),
    SceneSet("dialogue", 4, 6.0, 6.0),
]
SEED = 5


@pytest.fixture(scope="module", autouse=True)
def small_shards() -> object:
    """Several of each set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "SHARD_SECONDS", 20.0)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, banks: Banks, small_shards: None) -> Path:
    where = tmp_path_factory.mktemp("set")
    steps = list(generate(where, SETS, banks, SEED))
    assert steps == [(i, len(steps)) for i in range(1, len(steps) + 1)]
    return where


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_folder_holds_what_the_documentation_says(folder: Path) -> None:
    names = sorted(p.name for p in folder.iterdir())
    stems = [f"scenes-{i:05}" for i in range(len(names) // 3)]
    assert len(stems) == 4 + 2 + 2
    endings = (".conversations.jsonl", ".index.json", ".tar")
    assert names == ["dataset.json", *(stem + ending for stem in stems for ending in endings)]
    scenes = [key for stem in stems for key in Shard(folder / f"{stem}.tar").keys]
    assert len(scenes) == sum(s.count for s in SETS)


def test_any_number_of_workers_makes_the_same(folder: Path, banks: Banks, tmp_path: Path) -> None:
    list(generate(tmp_path, SETS, banks, SEED, workers=3))
    assert contents(tmp_path) == contents(folder)


def test_a_folder_takes_what_is_expected(folder: Path) -> None:
    """Nearly all of it recordings."""
    taken = sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert taken == pytest.approx(sum(s.seconds for s in SETS) * dataset.BYTES, rel=0.1)


def test_another_seed_makes_another_set_elsewhere(
    folder: Path, banks: Banks, tmp_path: Path
) -> None:
    list(generate(tmp_path, SETS[1:], banks, SEED + 1))
    one, other = (Shard(f / "scenes-00000.tar").read(n) for f, n in (
        (tmp_path, "00000-000000.wav"), (folder, "00000-000000.wav")))  # fmt: skip
    assert one != other
    for sets, seed in ((SETS, SEED + 1), (SETS[1:], SEED)):
        with pytest.raises(ValueError, match="holds another data set; choose another folder"):
            list(generate(folder, sets, banks, seed))


def test_a_scene_does_not_depend_on_the_others(folder: Path, banks: Banks) -> None:
    """Made alone it is what the shard holds, within 16 bits."""
    scene, seconds = SETS[1].scene(SEED, 4, banks)
    path = next(p for p in sorted(folder.glob("*.tar")) if any(
        k.endswith("-000004") and Shard(p).labels(k)["kind"] == "mixed" for k in Shard(p).keys))  # fmt: skip
    key = next(k for k in Shard(path).keys if k.endswith("-000004"))
    samples, rate = Shard(path).audio(f"{key}.wav")
    assert rate == SAMPLE_RATE
    assert np.abs(samples - scene.samples).max() <= 1 / 32768
    assert Shard(path).labels(key)["seconds"] == seconds


def test_whole_shards_stay_and_others_are_made_again(
    folder: Path, banks: Banks, tmp_path: Path
) -> None:
    """Whatever a killed call may leave: half a shard under another name, an index alone, no conversations, a
    shard cut short."""
    wanted = contents(folder)
    for name, content in wanted.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "scenes-00001.tar").rename(tmp_path / "scenes-00001.tar.part")
    (tmp_path / "scenes-00002.index.json").unlink()
    (tmp_path / "scenes-00003.conversations.jsonl").rename(
        tmp_path / "scenes-00003.conversations.part"
    )
    (tmp_path / "scenes-00004.tar").write_bytes(wanted["scenes-00004.tar"][:-512])
    (tmp_path / "scenes-00005.index.json").write_text("{")
    kept = tmp_path / "scenes-00000.tar"
    stamp = kept.stat().st_mtime_ns
    list(generate(tmp_path, SETS, banks, SEED))
    assert contents(tmp_path) == wanted
    assert kept.stat().st_mtime_ns == stamp
    assert (tmp_path / "scenes-00001.tar").stat().st_mtime_ns > stamp


def test_a_killed_call_goes_on(folder: Path, banks: Banks, tmp_path: Path) -> None:
    """Killed for good, workers and all, when two shards are there at most: the next call makes the rest."""
    program = f"""
import time
from pathlib import Path
from afnext.training.synthesis import dataset
from afnext.training.synthesis.banks import Banks
dataset.SHARD_SECONDS = 20.0
write = dataset.write_shard
slow = lambda path: time.sleep(600 * (path.name > "scenes-00001.tar"))
dataset.write_shard = lambda path, made: (slow(path), write(path, made))
sets = [dataset.SceneSet("sounds", 40, 1.0, 4.0), dataset.SceneSet("mixed", 6, 5.0, 9.0, questions=12),
        dataset.SceneSet("dialogue", 4, 6.0, 6.0)]
list(dataset.generate({str(tmp_path)!r}, sets, Banks(Path({str(banks.folder)!r})), {SEED}, 2))
"""
    with subprocess.Popen([sys.executable, "-c", program], start_new_session=True) as process:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("*.conversations.jsonl")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    stamps = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.conversations.jsonl")}
    assert 1 <= len(stamps) <= 2
    list(generate(tmp_path, SETS, banks, SEED))
    found = contents(tmp_path)
    assert {k: v for k, v in found.items() if not k.endswith(".part")} == contents(folder)
    for name, stamp in stamps.items():
        assert (tmp_path / name).stat().st_mtime_ns == stamp


def test_a_worker_that_cannot_write_says_so(banks: Banks, tmp_path: Path) -> None:
    (tmp_path / "scenes-00000.tar.part").mkdir()
    with pytest.raises(AfnextError, match=r"cannot write the shard .*scenes-00000\.tar: Is a dir"):
        list(generate(tmp_path, SETS[:1], banks, SEED))


def test_conversations_follow_from_the_labels(folder: Path) -> None:
    """Every record is read; its recordings are there, as long as it says; a listing is that of the labels."""
    kinds: Counter[str] = Counter()
    turns = 0
    for path in sorted(folder.glob("*.conversations.jsonl")):
        shard = Shard(path.with_name(path.name.replace(".conversations.jsonl", ".tar")))
        for item in conversations.read(path):
            seconds = 0.0
            for sound in item.sounds:
                file, _, name = sound.partition("/")
                assert file == shard.path.name
                samples, rate = shard.audio(name)
                seconds += len(samples) / rate
            assert item.duration == pytest.approx(seconds, abs=1e-6)
            assert len(item.turns) == 2 * len(item.task.split("+"))
            kinds.update(item.task.split("+"))
            turns += 1
            if item.task == "list":
                labels = shard.labels(name.removesuffix(".wav"))
                expected = listing(timeline(from_json(labels)))
                assert item.turns[1].text == expected
    assert kinds["list"] > 3
    assert {"presence", "transcribe", "diarize", "instrument"} <= set(kinds)
    assert turns < sum(kinds.values())  # some go on


def test_there_are_as_many_questions_as_asked_for(folder: Path) -> None:
    """Of a scene: ``questions`` and one more for each 7 s; some as further turns; some about two of them."""
    asked: Counter[str] = Counter()
    pairs = 0
    for path in sorted(folder.glob("*.conversations.jsonl")):
        for item in conversations.read(path):
            if len(item.sounds) == 2:
                pairs += 1
                assert item.duration is not None
                assert item.duration <= 30
                assert item.task in ("which_has", "same_sounds", "in_both", "more", "list_of")
            else:
                asked[item.sounds[0]] += len(item.turns) // 2
    assert 0 < pairs < 15
    for path in sorted(folder.glob("*.tar")):
        shard = Shard(path)
        for key in shard.keys:
            labels = shard.labels(key)
            wanted = {s.kind: s.questions for s in SETS}[labels["kind"]]
            assert asked[f"{path.name}/{key}.wav"] == wanted + int(labels["seconds"] // 7)


def test_a_training_set_says_nothing_that_is_held_out(
    folder: Path, banks: Banks, held_out_banks: Banks, tmp_path: Path
) -> None:
    def said(where: Path) -> tuple[set[str], set[str]]:
        scenes = [from_json(Shard(p).labels(k)) for p in where.glob("*.tar") for k in Shard(p).keys]
        found = [u for scene in scenes for u in scene.utterances]
        return {u.speaker for u in found}, {u.text for u in found}

    list(generate(tmp_path, SETS[1:], held_out_banks, SEED))
    (speakers, texts), (other_speakers, other_texts) = said(folder), said(tmp_path)
    assert min(len(texts), len(other_texts)) >= 8
    assert not speakers & other_speakers
    assert not any(map(is_held_out, texts))
    assert all(map(is_held_out, other_texts))


def test_lengths_are_even_on_a_logarithmic_scale(banks: Banks) -> None:
    scenes = SceneSet("sounds", 200, 0.5, 8.0)  # half a second is the least there is
    lengths = [scenes.scene(1, i, banks)[1] for i in range(200)]
    assert all(0.5 <= s <= 8 and s == round(s, 1) for s in lengths)
    assert np.median(lengths) == pytest.approx(2, rel=0.35)  # the geometric mean
    assert scenes.seconds == pytest.approx(sum(lengths), rel=0.1)
    assert SceneSet("music", 3, 4.0, 4.0).seconds == 12
    assert {
        s for _, s in (SceneSet("music", 3, 4.0, 4.0).scene(1, i, banks) for i in range(3))
    } == {4.0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("opera", 1, 1.0, 2.0), "one of sounds, monologue, .* got 'opera'"),
        (("music", 1, 3.0, 2.0), "at least 0.5 s, shortest first"),
        (("music", 1, 0.1, 2.0), "at least 0.5 s, shortest first"),
    ],
)
def test_impossible_sets_are_refused(arguments: tuple[str, int, float, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SceneSet(*arguments)


def test_a_set_that_asks_for_no_known_kind_of_question_is_refused() -> None:
    with pytest.raises(ValueError, match="asked: no kind of question is called 'where'"):
        SceneSet("dense", 1, 20.0, 30.0, asked={"when": 1.0, "where": 1.0})


def test_the_manifest_says_what_was_asked_for(folder: Path) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    assert content["seed"] == SEED
    assert [SceneSet(**s) for s in content["sets"]] == SETS


def test_a_scene_is_written_with_what_is_in_it(
    tmp_path: Path,
    held_out_banks: Banks,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the held-out voices, by seed."""
    asked = []

    def make(folder: Path, split: str, sentences: int, seed: int) -> list[tuple[int, Banks]]:
        asked.append((folder, split, sentences, seed))
        return [(sentences, held_out_banks)]

    monkeypatch.setattr(banks_module, "make", make)
    path = tmp_path / "scene.wav"
    main(
        [str(path), "--kind", "dialogue", "--seconds", "6", "--seed", "4", "--banks", str(tmp_path)]
    )
    scene = compose("dialogue", 6.0, np.random.default_rng(4), held_out_banks)
    assert asked == [(tmp_path, "held-out", 100, 4)]
    assert capsys.readouterr().out == f"{script(scene)}\n"
    samples, rate = soundfile.read(path)
    assert rate == SAMPLE_RATE
    assert np.abs(samples - scene.samples).max() <= 1 / 32768


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["x.mp3"], "path"),
        (["nowhere/x.wav"], "path"),
        (["x.wav", "--seconds", "-1"], "--seconds"),
    ],
)
def test_a_scene_that_cannot_be_written_is_refused(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert f"error: {named}: " in capsys.readouterr().err


def test_a_set_of_pairs_asks_about_two_alone(banks: Banks, tmp_path: Path) -> None:
    list(generate(tmp_path, [SceneSet("sounds", 4, 1.0, 2.0, pairs=2.0, alone=False)], banks, SEED))
    (path,) = tmp_path.glob("*.conversations.jsonl")
    said = list(conversations.read(path))
    assert [len(item.sounds) for item in said] == [2] * 2 * 3  # the first has none before it
    assert {item.task for item in said} <= set(several.MAKERS)


def test_a_set_asks_what_it_is_to_ask(banks: Banks, tmp_path: Path) -> None:
    wanted = {"when": 1.0, "when_each": 3.0}
    list(generate(tmp_path, [SceneSet("dense", 2, 20.0, 20.0, 20, asked=wanted)], banks, SEED))
    said = [item for path in tmp_path.glob("*.jsonl") for item in conversations.read(path)]
    kinds = Counter(kind for item in said if len(item.sounds) == 1 for kind in item.task.split("+"))
    assert sum(kinds.values()) == 2 * (20 + 20 // 7)
    assert kinds.keys() == wanted.keys()
    assert kinds["when_each"] > kinds.total() / 2
