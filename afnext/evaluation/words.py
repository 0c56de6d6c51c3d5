"""Word errors of transcripts, counted by jiwer."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from afnext.chat import Segment
from afnext.errors import AfnextError
from afnext.evaluation.events import on_time
from afnext.evaluation.score import Scores, Share
from afnext.training.synthesis.scenes import Event, Utterance


def normalised(text: str) -> list[str]:
    """Lower-case words without punctuation: all characters but letters, digits and apostrophes part them.

    Typographic apostrophes become plain ones; numbers stay as they are written.
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'").lower()
    return [word.strip("'") for word in re.findall(r"[\w']+", text) if word.strip("'")]


def word_errors(truth: str, found: str) -> tuple[int, int]:
    """Substitutions, deletions and insertions of normalised words, and how many true ones there are.

    Raises:
        AfnextError: jiwer is not installed.
    """
    true, heard = normalised(truth), normalised(found)
    if not true or not heard:
        return len(true) + len(heard), len(true)
    try:
        import jiwer
    except ImportError:
        raise AfnextError("word errors need jiwer: pip install 'afnext[eval]'") from None
    done = jiwer.process_words(" ".join(true), " ".join(heard))
    return done.substitutions + done.deletions + done.insertions, len(true)


def transcript_scores(truth: str, found: str) -> Scores:
    """Word errors, a share of the true words, and whether the whole is word for word."""
    errors, words = word_errors(truth, found)
    return {"wer": Share(errors, words), "word for word": Share(float(errors == 0))}


def timed_scores(truth: Sequence[Utterance], found: Sequence[Segment]) -> Scores:
    """Word errors of all sentences together; precision, recall and F1 of their onsets."""
    true, heard = (" ".join(item.text for item in items) for items in (truth, found))
    errors, words = word_errors(true, heard)
    hits = on_time(
        [Event("", u.onset, u.offset) for u in truth], [Event("", s.start, s.end) for s in found]
    )
    return {
        "wer": Share(errors, words),
        "f1": Share(2 * hits, len(truth) + len(found)),
        "precision": Share(hits, len(found)),
        "recall": Share(hits, len(truth)),
    }
