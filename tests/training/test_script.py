"""Recordings as text: all of it, in its order."""

from __future__ import annotations

import numpy as np

from afnext.training.synthesis.music import Melody, Note
from afnext.training.synthesis.scenes import Event, Scene, Utterance
from afnext.training.tasks.script import script


def test_a_script_says_what_is_heard_in_its_order() -> None:
    scene = Scene(
        np.zeros(0, np.float32),
        (Event("bell", 2.0, 3.04), Event("dog", 5.0, 5.5)),
        (
            Utterance("b", "Yes.", 0.1, 0.6),
            Utterance("a", "No.", 4.0, 4.5),
            Utterance("b", "So.", 6, 7),
        ),
        (Melody("violin", (Note(60, 12.0, 12.4), Note(61, 12.4, 13.0)), 100, "louder"),),
    )
    assert script(scene) == (
        "speech <t>0.1-0.6</t> Speaker 1: Yes.; bell <t>2.0-3.0</t>; speech <t>4.0-4.5</t> Speaker 2: No.; "
        "dog <t>5.0-5.5</t>; speech <t>6.0-7.0</t> Speaker 1: So.; "
        "music <t>12.0-13.0</t> violin 100 louder C4 <t>12.0</t> C#4 <t>12.4</t>"
    )


def test_silence_is_nothing() -> None:
    assert script(Scene(np.zeros(0, np.float32))) == "Nothing."
