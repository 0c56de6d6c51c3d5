"""A plan in words: a table of a chain's stages, or one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from afnext.training.run.spans import DAY, HOUR, said

from .load import audio_tokens
from .made import Made
from .plan import FLOAT, Resources, StagePlan

GB = 1e9
FEW_DAYS = 0.1  # below it a chain's times are told in smaller units
SHORT_STEP = 0.01  # seconds: what launches kernels and makes batches takes about as long


def as_dict(
    plans: Sequence[StagePlan], resources: Resources, made: Made | None = None
) -> dict[str, Any]:
    """Bytes, operations and seconds by stage, and what is synthesised before."""
    synthesised = {"audio_seconds": made.seconds, "bytes": made.bytes} if made else None
    return {
        "processes": resources.processes,
        "peak_operations_per_second": resources.peak,
        "utilisation": resources.utilisation,
        "device_memory_bytes": resources.device_memory,
        "days": _days(plans),
        "synthesised": synthesised,
        "stages": [
            {
                "name": plan.stage.name,
                "steps": plan.stage.steps,
                "mesh": dict(zip(("groups", "ring", "ulysses"), plan.mesh, strict=True)),
                "parameters": {
                    pattern: {"count": count, "rate": rate}
                    for pattern, (count, rate) in plan.counts.items()
                },
                "activations": plan.stage.activations,
                "batch_tokens_per_process": plan.load.tokens,
                "audio_tokens_per_process": audio_tokens(plan.load.windows),
                "memory_bytes": plan.memory,
                "memory_bytes_total": plan.total,
                "host_memory_bytes": plan.host,
                "tokens_per_step": plan.tokens,
                "audio_seconds_per_step": plan.audio_seconds,
                "operations_per_step": plan.flops,
                "attention_share": plan.attention,
                "seconds_per_step": plan.seconds,
                "days": plan.days,
            }
            for plan in plans
        ],
    }


def as_text(plans: Sequence[StagePlan], resources: Resources, made: Made | None = None) -> str:
    """A column for each stage, then notes, also of what is synthesised before."""
    limit, few = resources.device_memory, _days(plans) < FEW_DAYS
    rows: list[tuple[str, list[str]]] = [
        ("", [plan.stage.name for plan in plans]),
        ("groups x ring x Ulysses", [" x ".join(map(str, plan.mesh)) for plan in plans]),
        ("trained", [_count(plan, True) for plan in plans]),
        ("frozen", [_count(plan, False) for plan in plans]),
        ("layers keep", [plan.stage.activations for plan in plans]),
        ("tokens of a batch, here", [f"{plan.load.tokens:,}" for plan in plans]),
        ("GB of a device", ["" for _ in plans]),
    ]
    for part in plans[0].memory:
        rows.append((f"  {part}", [_gb(plan.memory[part]) for plan in plans]))
    rows.append(("  together", [_gb(plan.total) for plan in plans]))
    if limit:
        fits = ["yes" if plan.total <= limit else "no" for plan in plans]
        rows.append((f"  fits {limit / GB:g} GB", fits))
    if any(plan.host for plan in plans):
        rows.append(("GB on the host", [_gb(plan.host) for plan in plans]))
    rows += [
        ("tokens of a step", [f"{plan.tokens:,}" for plan in plans]),
        ("hours of audio of a step", [f"{plan.audio_seconds / 3600:.3g}" for plan in plans]),
        ("operations of a step", [f"{plan.flops:.3g}" for plan in plans]),
        ("  attention's share", [f"{plan.attention:.0%}" for plan in plans]),
        ("seconds of a step", [f"{sum(plan.seconds.values()):.3g}" for plan in plans]),
    ]
    for part in plans[0].seconds:
        rows.append((f"  {part}", [f"{plan.seconds[part]:.3g}" for plan in plans]))
    rows += [
        ("steps", [f"{plan.stage.steps:,}" for plan in plans]),
        ("time", [said(plan.days * DAY) for plan in plans])
        if few
        else ("days", [f"{plan.days:.3g}" for plan in plans]),
    ]
    wide = max(len(name) for name, _ in rows)
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(plans))]
    lines = [
        "  ".join([name.ljust(wide), *(c.rjust(w) for c, w in zip(cells, widths, strict=True))])
        for name, cells in rows
    ]
    return "\n".join(
        [*(line.rstrip() for line in lines), "", *_groups(plans), *_notes(plans, resources, made)]
    )


def _groups(plans: Sequence[StagePlan]) -> list[str]:
    """What is trained at which rate."""
    found = []
    for plan in plans:
        parts = (
            f"{pattern} {count:,} {'frozen' if rate is None else f'at {rate:g}'}"
            for pattern, (count, rate) in plan.counts.items()
        )
        found.append(f"{plan.stage.name}: {'; '.join(parts)}")
    return found


def _days(plans: Sequence[StagePlan]) -> float:
    return sum(plan.days for plan in plans)


def _notes(plans: Sequence[StagePlan], resources: Resources, made: Made | None) -> list[str]:
    days = _days(plans)
    device = "1 device that reaches"
    if resources.processes > 1:
        device = f"{resources.processes} devices that reach"
    h100 = " (an H100's)" if resources.peak == Resources.peak else ""
    notes = [
        f"All stages: {said(days * DAY) if days < FEW_DAYS else f'{days:.3g} days'} on {device} "
        f"{resources.utilisation:.0%} of {resources.peak / 1e12:g} T operations/s{h100}, which is assumed, "
        "not found on this machine: say --peak and --utilisation. Messages by the model of their cost.",
        "Batches as large as a stage draws them: recordings as long as it takes, one question about each. "
        "Parts are those of the moment when most is held. Of parameters the encoder's positions, which are "
        "fixed, are not counted.",
    ]
    if resources.processes > 1:
        whole = FLOAT * sum(count for count, _ in plans[0].counts.values())
        notes.append(
            "Before it keeps its part, each process reads the whole model, on the host and then on its "
            f"device: {_gb(whole)} GB."
        )
    if any(sum(plan.seconds.values()) < SHORT_STEP for plan in plans):
        notes.append(
            f"Steps of less than {SHORT_STEP * 1000:g} ms take longer than their operations: what launches "
            "kernels and makes batches is not counted."
        )
    if made:
        notes.append(
            f"In addition, before the first stage: {made.seconds / HOUR:.2g} hours of recordings are "
            f"synthesised on the CPU, {made.bytes / GB:.2g} GB with voices and instruments, unless they are "
            "there already."
        )
    if any(plan.stage.losses.frames or plan.stage.losses.spelling for plan in plans):
        notes.append("Objectives of labels are not counted among activations and operations.")
    return notes


def _count(plan: StagePlan, trained: bool) -> str:
    return f"{sum(n for n, rate in plan.counts.values() if (rate is not None) == trained):,}"


def _gb(size: float) -> str:
    return f"{size / GB:.3g}"
