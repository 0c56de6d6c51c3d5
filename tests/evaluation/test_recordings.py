"""Installed recordings: the table is sound, files are found, resource files are read."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from afnext.errors import AudioError
from afnext.evaluation import recordings
from afnext.evaluation.recordings import RECORDINGS, read_resource
from afnext.evaluation.score import Share
from afnext.training.synthesis.music import INSTRUMENTS
from afnext.training.synthesis.sounds import CLASSES


def wave(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(round(16_000 * seconds), 0.1), 16_000, format="WAV")
    return file.getvalue()


def resource(files: dict[str, bytes]) -> bytes:
    """A Qt resource file of version 3 with one folder ``sounds``, as ``rcc --binary`` lays it out."""
    names, places = b"", {}
    for name in ("sounds", *files):
        places[name] = len(names)
        text = name.encode("utf-16-be")
        names += struct.pack(">HI", len(name), 0) + text
    content, starts = b"", {}
    for name, data in files.items():
        starts[name] = len(content)
        content += struct.pack(">I", len(data)) + data
    nodes = struct.pack(">IHIIQ", 0, 2, 1, 1, 0)
    nodes += struct.pack(">IHIIQ", places["sounds"], 2, len(files), 2, 0)
    for name in files:
        nodes += struct.pack(">IHHHIQ", places[name], 0, 0, 1, starts[name], 0)
    tree = 24
    data = tree + len(nodes)
    head = struct.pack(">4s4II", b"qres", 3, tree, data, data + len(content), 0)
    return head + nodes + content + names


def test_the_table_names_known_things() -> None:
    assert len(RECORDINGS) >= 15
    assert len({r.key for r in RECORDINGS}) == len(RECORDINGS)
    for item in RECORDINGS:
        assert sum(map(bool, (item.sound, item.instrument, item.words))) == 1, item
        assert not item.sound or item.sound in CLASSES
        assert not item.instrument or item.instrument in {i.name for i in INSTRUMENTS}
        assert item.licence
        assert not item.path.startswith("/")


def test_files_of_a_resource_file(tmp_path: Path) -> None:
    files = {"a.wav": wave(0.5), "b.wav": wave(1.25)}
    path = tmp_path / "x.rcc"
    path.write_bytes(resource(files))
    for name, data in files.items():
        assert read_resource(path, f"sounds/{name}") == data
    for wrong in ("sounds/c.wav", "a.wav"):
        with pytest.raises(AudioError, match=wrong):
            read_resource(path, wrong)
    path.write_bytes(b"RIFF" + bytes(40))
    with pytest.raises(AudioError, match="no Qt resource file"):
        read_resource(path, "sounds/a.wav")
    path.write_bytes(resource(files)[:60])
    with pytest.raises(AudioError, match=r"x\.rcc"):
        read_resource(path, "sounds/a.wav")


def test_installed_recordings_are_found_and_heard(tmp_path: Path) -> None:
    alsa = tmp_path / "usr/share/sounds/alsa"
    alsa.mkdir(parents=True)
    (alsa / "Front_Left.wav").write_bytes(wave(1.5))
    found = recordings.installed(tmp_path)
    assert [r.words for r in found] == ["Front Left"]
    missing = recordings.missing_packages(tmp_path)
    assert "gcompris-qt-data" in missing
    assert "alsa-utils" in missing  # its other files are not there
    (window,) = recordings.windows(found[0].key, tmp_path)
    assert window.valid_samples == 24_000


def test_questions_know_what_is_evident() -> None:
    asked = {
        q.kind.partition(": ")[2]: q
        for item in RECORDINGS
        if item.path.endswith(("::gcompris/src/activities/explore_farm_animals/resource/animals/dog.ogg",
                               "hello-world.wav", "resource/piano.ogg"))
        for q in recordings.questions(item)
    }  # fmt: skip
    right, wrong = {"right": Share(1.0)}, {"right": Share(0.0)}
    assert asked["words"].judge("Hello, world!")["wer"] == Share(0, 2)
    assert asked["sound named"].judge("wind <t>0.0-0.3</t>, dog <t>0.3-0.9</t>.") == right
    assert asked["sound named"].judge("cat <t>0.3-0.9</t>.") == wrong
    assert asked["presence, present"].judge("Yes.") == right
    assert asked["presence, absent"].judge("Yes.") == wrong
    assert asked["instrument"].judge("Piano.") == right
    assert asked["instrument presence, absent"].judge("No.") == right
