"""The records of a run's log that stand: a run that went on took some steps anew."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

START = "start"


def read_records(log: Path) -> list[dict[str, Any]]:
    """Records of ``log.jsonl`` in their order, but for one that a kill cut short. Of steps that were taken
    anew, because a run was killed behind its newest checkpoint and went on from there, only the last are
    among them.

    A ``start`` record has the ``stage`` and the ``step`` of it that were done, if any stage was left.
    """
    found: list[dict[str, Any]] = []
    for line in log.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if record["kind"] == START and "step" in record:
                done = (record["stage"], record["step"])
                anew = (i for i, r in enumerate(found) if r["kind"] != START and _beyond(r, *done))
                del found[next(anew, len(found)) :]
            found.append(record)
    return found


def end_line(path: Path) -> None:
    """Have a file of lines, if it is there, end with a whole one: a kill may have cut the last short."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")


def _beyond(record: dict[str, Any], stage: str, step: int) -> bool:
    return bool(record.get("stage") == stage and record.get("step", 0) > step)
