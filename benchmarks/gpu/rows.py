"""All rows, and how one is measured: the work of a child process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from ..case import Case
from ..results import Peaks, result_of
from . import attention_rows, linear_rows, parallel_rows, small_rows, step_rows
from .lab import Lab
from .row import Row

# What matters most comes first, in case that time runs out.
ROWS = [
    *attention_rows.ROWS, *step_rows.ROWS, *parallel_rows.ROWS, *small_rows.ROWS,
    *attention_rows.OLDER_ROWS, *linear_rows.ROWS,
]  # fmt: skip
PEAKS = "peaks"  # an item beside the rows: what the device can do


def measurer(settings: Mapping[str, Any]) -> Callable[[str], Any]:
    """A child's work: of a row's title its ``result``, and the peers that do not run here, ``missing``."""
    lab = Lab(settings["rehearse"])
    if peaks := settings.get(PEAKS):
        lab.peaks = Peaks(**peaks)
    rows = {row.title: row for row in ROWS}
    torch.manual_seed(0)

    def measure(title: str) -> Any:
        return asdict(lab.peaks) if title == PEAKS else _measure(lab, rows[title])

    return measure


def _measure(lab: Lab, row: Row) -> dict[str, Any]:
    try:
        case = row.case(lab)
        if case.check is not None:
            case.check()
        if row.older:
            case = replace(case, name=f"{case.name}, by the kernels of sm_80")
        case, missing = _running(case)
        timings = lab.time({case.label: case.ours, **case.peers})
        return {"result": asdict(result_of(row.op, case, timings, lab.peaks)), "missing": missing}
    finally:
        lab.release()


def _running(case: Case) -> tuple[Case, list[str]]:
    """With the peers that this machine runs; torch refuses some backends for some shapes."""
    running, missing = {}, []
    for name, call in case.peers.items():
        try:
            call()
            running[name] = call
        except RuntimeError as error:
            missing.append(f"{name} ({' '.join(str(error).split())[:120]})")
    return replace(case, peers=running), missing
