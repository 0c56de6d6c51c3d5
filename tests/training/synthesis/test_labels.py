"""Labels: written and read back, and refused by name where they cannot be true."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from afnext.errors import AfnextError
from afnext.training.synthesis.banks import Banks
from afnext.training.synthesis.labels import from_json, to_json
from afnext.training.synthesis.music import Melody, Note
from afnext.training.synthesis.scenes import Event, Scene, Utterance, compose
from afnext.training.tasks.exchange import Span

SCENE = Scene(
    np.zeros(16_000 * 5, np.float32),
    (Event("bell", 0.5, 1.25),),
    (Utterance("alto", "It is half past nine.", 1.0, 2.5),),
    (Melody("harp", (Note(60, 3.0, 3.5), Note(64, 3.5, 4.0)), 120, "louder"),),
)


def times(scene: Scene) -> list[float]:
    notes = [note for melody in scene.melodies for note in melody.notes]
    parts: list[Span] = [*scene.events, *scene.utterances, *notes]
    return [time for part in parts for time in (part.onset, part.offset)]


def labels() -> dict[str, Any]:
    return json.loads(json.dumps(to_json(SCENE, "mixed", 5.0)))


def test_labels_have_the_documented_form() -> None:
    assert to_json(SCENE, "mixed", 5.0) == {
        "kind": "mixed",
        "seconds": 5.0,
        "events": [["bell", 0.5, 1.25]],
        "utterances": [["alto", "It is half past nine.", 1.0, 2.5]],
        "melodies": [
            {
                "instrument": "harp", "tempo": 120, "loudness": "louder",
                "notes": [[60, 3.0, 3.5], [64, 3.5, 4.0]],
            },
        ],
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["sounds", "dialogue", "music", "mixed"])
def test_labels_are_read_back_to_a_tenth_of_a_millisecond(kind: str, banks: Banks) -> None:
    for seed in range(5):
        scene = compose(kind, 9.0, np.random.default_rng(seed), banks)
        found = from_json(json.loads(json.dumps(to_json(scene, kind, 9.0))))
        assert len(found.samples) == 0
        assert [e.label for e in found.events] == [e.label for e in scene.events]
        assert [u.text for u in found.utterances] == [u.text for u in scene.utterances]
        assert times(found) == pytest.approx(times(scene), abs=5.1e-5)
        again = to_json(found, kind, 9.0)
        assert again == to_json(scene, kind, 9.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x["events"].append(["siren", 4.0, 5.2]), "siren from 4 to 5.2 s is no time within 5 s"),
        (lambda x: x["utterances"].append(["bass", "Hm.", 5.5, 5.6]), "bass from 5.5 to 5.6 s"),
        (lambda x: x["melodies"][0]["notes"].append([67, 5.0, 6.0]), "harp from 3 to 6 s"),
        (lambda x: x["melodies"][0]["notes"].insert(1, [67, 9.0, 9.5]), "G4 from 9 to 9.5 s"),
        (lambda x: x["events"].append(["siren", -0.1, 1.0]), "siren from -0.1 to 1 s"),
        (lambda x: x["events"].append(["siren", 2.0, 2.0]), "siren from 2 to 2 s"),
        (lambda x: x["events"].append(["siren", 2.0, float("nan")]), "siren from 2 to nan s"),
        (lambda x: x.update(seconds=1.2), "bell from 0.5 to 1.25 s"),
    ],
)  # fmt: skip
def test_a_time_outside_the_recording_is_refused_by_name(change: Any, said: str) -> None:
    wrong = labels()
    change(wrong)
    if "bell" in said:
        wrong["utterances"], wrong["melodies"], wrong["seconds"] = [], [], 1.19
    with pytest.raises(AfnextError, match=f"shard 3/17: {re.escape(said)}"):
        from_json(wrong, "shard 3/17")


def test_rounding_at_the_end_is_no_error() -> None:
    close = labels()
    close["events"].append(["siren", 4.0, 5.04])
    assert from_json(close).events[-1].offset == 5.04


@pytest.mark.parametrize("field", ["seconds", "events", "utterances", "melodies"])
@pytest.mark.parametrize("value", ["missing", "word", 7, [["x"]], [None], None])
def test_other_shapes_are_refused_by_name(field: str, value: Any) -> None:
    wrong = labels()
    if value == "missing":
        del wrong[field]
    else:
        wrong[field] = value
    if (field, value) == ("seconds", 7):
        return
    with pytest.raises(AfnextError, match="shard 3/17: not the labels of a recording"):
        from_json(wrong, "shard 3/17")


@pytest.mark.parametrize("wrong", [{"notes": []}, {"notes": [["C4", 0.0, 1.0]]}, {"tempo": None}])
def test_a_melody_needs_notes(wrong: dict[str, Any]) -> None:
    item = labels()
    item["melodies"][0] |= wrong
    if "tempo" in wrong:
        del item["melodies"][0]["tempo"]
    with pytest.raises(AfnextError, match="not the labels of a recording"):
        from_json(item)
