"""The losses of a run as a picture, from its log."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from afnext.training.run.records import read_records


def draw_losses(log: Path, picture: Path) -> bool:
    """Draw every objective over the minutes of training, the stages side by side; ``picture`` is an SVG.

    Returns:
        Whether there was something to draw and matplotlib to draw it with.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
    begins: dict[str, float] = {}
    for record in read_records(log):
        if record["kind"] != "train":
            continue
        begins.setdefault(record["stage"], record["minutes"])
        for name, value in record.items():
            if name.endswith("_loss"):
                curves[name.removesuffix("_loss")].append((record["minutes"], value))
    if not curves:
        return False
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        alone = "." if len(points) == 1 else None  # of which no line can be drawn
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1, marker=alone)
    for stage, minute in begins.items():
        axes.axvline(minute, color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.text(minute, 1.01, f" {stage}", transform=axes.get_xaxis_transform(), fontsize=8)
    axes.set(xlabel="minutes of training", ylabel="loss, weighted", yscale="log")
    axes.legend(fontsize=8)
    figure.savefig(picture, metadata={"Date": None})
    return True
