"""A recording as text: all that is to be heard in it, in its order, as a decoder without ears can read it."""

from __future__ import annotations

from itertools import chain

from afnext.training.synthesis.scenes import Scene
from afnext.training.tasks.exchange import seconds, span
from afnext.training.tasks.speech import numbered


def script(scene: Scene) -> str:
    """As ``bell <t>1.2-2.5</t>; speech <t>3.0-4.8</t> Speaker 1: The door is open.``, ordered by onset, or
    ``Nothing.``
    """
    names = numbered(scene.utterances)
    lines = chain(
        ((e.onset, f"{e.label} {span(e)}") for e in scene.events),
        ((u.onset, f"speech {span(u)} {names[u.speaker]}: {u.text}") for u in scene.utterances),
        (
            (
                m.onset,
                f"music {span(m)} {m.instrument} {m.tempo} {m.loudness} "
                + " ".join(f"{n.name} <t>{seconds(n.onset)}</t>" for n in m.notes),
            )
            for m in scene.melodies
        ),
    )
    return "; ".join(text for _, text in sorted(lines)) or "Nothing."
