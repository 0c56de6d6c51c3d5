"""What all processes of a run must have alike, compared where they meet, before they join: in groups with one
that is otherwise the others would only wait.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import afnext
from afnext.errors import AfnextError
from afnext.ops import runtime

HERE, FIRST, OTHER, COUNT, ALL = (
    f"afnext/alike/{key}" for key in ("here", "first", "other", "count", "all")
)
MODULE = "compiled module"
REMEDIES = {
    MODULE: ": what two machines build of one source may differ, so install one wheel on all"
}


def agree(
    store: dist.Store, rank: int, size: int, mine: Mapping[str, str], patience: timedelta
) -> None:
    """Every process calls it, with the same names.

    Raises:
        AfnextError: with the rank, and what it has other than the first; or who did not come in time.
    """
    store.set(f"{HERE}/{rank}", "")
    if rank == 0:
        store.set(FIRST, json.dumps(dict(mine)))
    try:
        store.wait([FIRST], patience)
        if why := other_than(json.loads(store.get(FIRST)), rank, mine):
            store.set(OTHER, why)
        if store.add(COUNT, 1) == size:
            store.set(ALL, "")
        store.wait([ALL], patience)
    except RuntimeError:
        gone = [str(other) for other in range(size) if not store.check([f"{HERE}/{other}"])]
        if not gone:
            raise
        raise AfnextError(
            f"rank {', '.join(gone)} did not come in {patience.total_seconds():.0f} s"
        ) from None
    if store.check([OTHER]):
        raise AfnextError(store.get(OTHER).decode())


def other_than(first: Mapping[str, str], rank: int, theirs: Mapping[str, str]) -> str:
    """Which is the first thing that a rank has otherwise; empty where there is none."""
    for what, value in theirs.items():
        if value != first[what]:
            return f"rank {rank} has another {what} than rank 0{REMEDIES.get(what, '')}"
    return ""


def code() -> dict[str, str]:
    """What the package's Python files and its compiled module hold, as hashes, and torch's version."""
    folder = Path(afnext.__file__).parent
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(path.relative_to(folder).as_posix().encode())
        found.update(path.read_bytes())
    module = hashlib.sha256(runtime.module_path().read_bytes())
    return {
        "code of afnext": found.hexdigest(),
        MODULE: module.hexdigest(),
        "version of torch": torch.__version__,
    }
