"""Who computes and what is under way when, as an SVG: a panel for each run, three lanes for each rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from afnext.parallel.delay import Delayed, Kernel

COLORS = {
    "forward": "#1f6f8b", "backward": "#5b7f2b", "waits": "#c62828", "heads": "#b3a04e",
    "ring": "#b3541e",
}  # fmt: skip
LANES = {"computes": ("forward", "backward", "waits"), "heads": ("heads",), "ring": ("ring",)}
SEEN = 2e-4
"""Seconds below which nothing is drawn."""
Spans = Mapping[str, Sequence[tuple[float, float]]]
"""By what is done, when each began and how long it took, in seconds."""


def spans(link: Delayed, kernels: Sequence[Kernel], start: float) -> Spans:
    """A rank's, since ``start``."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COLORS}
    for kernel in kernels:
        if kernel.rank == link.rank:
            name = "backward" if kernel.backward else "forward"
            found[name].append((kernel.begun - start, kernel.ended - kernel.begun))
    for message in link.messages:
        found[message.kind].append((message.left - start, message.due - message.left))
        found["waits"].append((message.wanted - start, message.exposed))
    return found


def draw(title: str, runs: Mapping[str, Sequence[Spans]], picture: Path) -> None:
    """Panels by name, of each rank's spans; needs matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    ranks = len(next(iter(runs.values())))
    figure = Figure(figsize=(11, 0.8 + 0.55 * ranks * len(runs)), layout="constrained")
    panels = figure.subplots(len(runs), sharex=True, squeeze=False)[:, 0]
    lanes = [(rank, lane) for rank in range(ranks) for lane in LANES]
    for axes, (name, of_ranks) in zip(panels, runs.items(), strict=True):
        for place, (rank, lane) in enumerate(lanes):
            for kind in LANES[lane]:
                spans = of_ranks[rank][kind]
                bars = [(begun * 1e3, took * 1e3) for begun, took in spans if took > SEEN]
                axes.broken_barh(bars, (place - 0.4, 0.8), color=COLORS[kind], linewidth=0)
        axes.set(title=name, yticks=range(len(lanes)), yticklabels=[f"{r}: {x}" for r, x in lanes])
        axes.tick_params("y", labelsize=7)
        axes.invert_yaxis()
    panels[-1].set(xlabel="ms")
    figure.suptitle(title)
    keys = [Patch(color=color, label=kind) for kind, color in COLORS.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=len(keys), fontsize=8)
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(picture, metadata={"Date": None})
