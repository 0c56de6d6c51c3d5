"""A roofline picture (Williams, Waterman, Patterson, CACM 2009) as SVG: cases under the machine's limits.

Across: operations a byte; up: operations a second; both logarithmic. A case can be no higher than the slope
of memory and the flat roof of its dtype. Points carry numbers, the key beside the plot their names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from .results import Contestant, Peaks, Result

WIDTH, PLOT, HEIGHT = 1240, 700, 620  # all, and the plot's right edge
LEFT, TOP, BOTTOM = 84, 56, 64
COLORS = {"float32": "#1f6f8b", "bfloat16": "#b3541e", "int8": "#5b7f2b"}
OTHER = "#555555"
KEY_LINES = 24


class _Axis:
    """Positions of powers of ten between two pixels."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = math.floor(math.log10(low)), math.ceil(math.log10(high))
        if self.high == self.low:
            self.high += 1
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    @property
    def decades(self) -> list[float]:
        return [10.0**power for power in range(self.low, self.high + 1)]


def svg(title: str, peaks: Peaks, results: Sequence[Result]) -> str:
    """The picture. Cases that do not count both operations and bytes have no place in it.

    Raises:
        ValueError: no case has.
    """
    counted = [r for r in results if r.flops > 0 and r.bytes > 0]
    shown = counted[:KEY_LINES]
    if not shown:
        raise ValueError("picture: no case counts both operations and bytes")
    intensities = [r.flops / r.bytes for r in shown]
    roofs = {d: peaks.compute[d] for d in dict.fromkeys(r.dtype for r in shown)}
    ridge = max(roofs.values()) / peaks.memory
    rates = [c.flops_per_second for r in shown for c in _drawn(r)]
    across = _Axis(min(*intensities, ridge / 4), max(*intensities, ridge * 4), LEFT, PLOT)
    up = _Axis(min(*rates, *roofs.values()), max(*rates, *roofs.values()), HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="13" fill="#222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        _text(LEFT, 28, title, size=16),
        *_grid(across, up),
        *_roofs(across, up, peaks.memory, roofs),
    ]
    for number, result in enumerate(shown, 1):
        parts += _points(across, up, number, result)
        parts += _key(number, result)
    if len(counted) > KEY_LINES:
        more = f"and {len(counted) - KEY_LINES} more, which are not shown"
        parts.append(_text(PLOT + 50, TOP + 12 + 21 * KEY_LINES, more, size=12))
    parts.append(_text(PLOT + 24, HEIGHT - 16, "filled: ours; hollow: the fastest peer", size=12))
    return "\n".join([*parts, "</svg>\n"])


def _drawn(result: Result) -> list[Contestant]:
    peer = result.best_peer
    return [result.ours] if peer is None else [result.ours, peer]


def _grid(across: _Axis, up: _Axis) -> list[str]:
    parts = []
    for value in across.decades:
        x = across(value)
        parts.append(_line(x, up.start, x, up.end, "#e4e4e4"))
        parts.append(_text(x, up.start + 20, f"{value:g}", anchor="middle"))
    for value in up.decades:
        y = up(value)
        parts.append(_line(across.start, y, across.end, y, "#e4e4e4"))
        parts.append(_text(across.start - 8, y + 4, _rate(value), anchor="end"))
    middle = (across.start + across.end) / 2
    parts.append(_text(middle, HEIGHT - 16, "operations per byte of memory", anchor="middle"))
    parts.append(_text(LEFT, 46, "operations per second", size=12))
    return parts


def _roofs(across: _Axis, up: _Axis, memory: float, roofs: dict[str, float]) -> list[str]:
    top = max(roofs.values())
    # The slope, cut where it leaves the plot below and where it meets the highest roof.
    first = max(across.decades[0], up.decades[0] / memory)
    x, y = across(first), up(first * memory)
    ridge_x, ridge_y = across(top / memory), up(top)
    angle = math.degrees(math.atan2(ridge_y - y, ridge_x - x))
    parts = [_line(x, y, ridge_x, ridge_y, "#222", 2)]
    label = _text(0, -8, f"memory {memory / 1e9:.1f} GB/s")
    near = (x + 0.1 * (ridge_x - x), y + 0.1 * (ridge_y - y))
    parts.append(
        f'<g transform="translate({near[0]:.1f} {near[1]:.1f}) rotate({angle:.1f})">{label}</g>'
    )
    for dtype, peak in roofs.items():
        color, height = COLORS.get(dtype, OTHER), up(peak)
        parts.append(_line(across(peak / memory), height, across.end, height, color, 2))
        parts.append(
            _text(across.end, height - 6, f"{dtype} {_rate(peak)}", anchor="end", fill=color)
        )
    return parts


def _points(across: _Axis, up: _Axis, number: int, result: Result) -> list[str]:
    color = COLORS.get(result.dtype, OTHER)
    x = across(result.flops / result.bytes)
    parts = []
    heights = [up(c.flops_per_second) for c in _drawn(result)]
    if len(heights) == 2:
        parts.append(_line(x, heights[0], x, heights[1], color))
        parts.append(
            f'<circle cx="{x:.1f}" cy="{heights[1]:.1f}" r="5" fill="#fff" stroke="{color}" '
            f'stroke-width="1.5"/>'
        )
    parts.append(f'<circle cx="{x:.1f}" cy="{heights[0]:.1f}" r="9" fill="{color}"/>')
    parts.append(_text(x, heights[0] + 4, str(number), anchor="middle", fill="#fff", size=11))
    return parts


def _key(number: int, result: Result) -> list[str]:
    y = TOP + 8 + 21 * (number - 1)
    share = f", {result.limit_seconds / result.ours.seconds.median:.0%} of the roof"
    name = f"{result.benchmark} {result.name}"
    name = name if len(name) <= 58 else name[:57] + "…"
    return [
        f'<circle cx="{PLOT + 34}" cy="{y}" r="9" fill="{COLORS.get(result.dtype, OTHER)}"/>',
        _text(PLOT + 34, y + 4, str(number), anchor="middle", fill="#fff", size=11),
        _text(PLOT + 50, y + 4, name + share, size=12),
    ]


def _rate(value: float) -> str:
    return f"{value / 1e12:g} T" if value >= 1e12 else f"{float(f'{value / 1e9:.3g}'):g} G"


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" '
        f'stroke-width="{width}"/>'
    )


def _text(
    x: float, y: float, text: str, anchor: str = "start", fill: str = "#222", size: int = 13
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-size="{size}">'
        f"{escape(text)}</text>"
    )
