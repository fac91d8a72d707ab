"""Charts of numbers with their intervals, one row each, and of words written against words asked for, as inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from launch.report_charts import number_text, ticks

WIDTH, LABELS, RIGHT = 380, 128, 14
ROW, TOP, BOTTOM = 22, 6, 22
MAX_LABEL = 18
"""Characters of a row's name; a longer one is whole in the tooltip."""
SIDE = 300
EDGE = 46


@dataclass(frozen=True, slots=True)
class Bar:
    """One row: a mean, and its 95% interval where it has a finite one."""

    name: str
    mean: float
    low: float | None
    high: float | None


def interval_chart(title: str, bars: Sequence[Bar]) -> str | None:
    """Return an SVG with a mark at each mean and a line over its interval; None without rows.

    The axis starts at 0 wherever nothing is negative and 0 is not far away, so that small differences look small.
    """
    if not bars:
        return None
    ends = [v for bar in bars for v in (bar.mean, bar.low, bar.high) if v is not None]
    low, high = min(ends), max(ends)
    if low >= 0 and (low < 4 * (high - low) or low == high):
        low, high = 0.0, high or 1.0
    marks = ticks(low, high)
    height = TOP + ROW * len(bars) + BOTTOM

    def x(value: float) -> float:
        return LABELS + (WIDTH - LABELS - RIGHT) * (value - marks[0]) / (marks[-1] - marks[0])

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    base = height - BOTTOM
    for mark in marks:
        parts.append(f'<line class="grid" x1="{x(mark):.1f}" x2="{x(mark):.1f}" y1="{TOP}" y2="{base}"/>')
        parts.append(f'<text class="x" x="{x(mark):.1f}" y="{base + 14}">{number_text(mark)}</text>')
    for i, bar in enumerate(bars):
        y = TOP + ROW * (i + 0.5)
        label = escape(bar.name if len(bar.name) <= MAX_LABEL else bar.name[: MAX_LABEL - 1] + "…")
        told = f"{bar.name}: {number_text(bar.mean)}"
        parts.append(f'<text class="y" x="{LABELS - 8}" y="{y + 3.5:.1f}">{label}</text>')
        if bar.low is not None and bar.high is not None:
            told += f" ({number_text(bar.low)} to {number_text(bar.high)})"
            parts.append(f'<path class="line s0" d="M{x(bar.low):.1f} {y:.1f}L{x(bar.high):.1f} {y:.1f}"/>')
        parts.append(
            f'<g class="s0"><title>{escape(told)}</title>'
            f'<circle class="hit" cx="{x(bar.mean):.1f}" cy="{y:.1f}" r="8"/>'
            f'<circle cx="{x(bar.mean):.1f}" cy="{y:.1f}" r="3"/></g>'
        )
    return "".join([*parts, "</svg>"])


def words_chart(title: str, points: Sequence[tuple[str, float, float]]) -> str | None:
    """Return an SVG of (name, words required, words written), both axes in powers of ten; None without a point.

    The line is where both are the same. A text without a word stands on the lower edge.
    """
    if not points:
        return None
    biggest = max(max(required, written) for _, required, written in points)
    smallest = min(min(required, max(written, 1.0)) for _, required, written in points)
    first, last = math.floor(math.log10(smallest)), max(math.ceil(math.log10(biggest)), 1)
    last += last == first

    def place(words: float) -> float:
        return (SIDE - EDGE - 10) * (math.log10(max(words, 10.0**first)) - first) / (last - first)

    floor = SIDE - 34
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {SIDE + 8}" role="img" aria-label="{escape(title)}">']
    for power in range(first, last + 1):
        at = place(10.0**power)
        parts.append(f'<line class="grid" x1="{EDGE}" x2="{EDGE + place(10.0**last):.1f}" y1="{floor - at:.1f}" '
                     f'y2="{floor - at:.1f}"/>')  # fmt: skip
        parts.append(f'<text class="y" x="{EDGE - 6}" y="{floor - at + 3.5:.1f}">{10**power:,}</text>')
        parts.append(f'<text class="x" x="{EDGE + at:.1f}" y="{floor + 14}">{10**power:,}</text>')
    far = place(10.0**last)
    parts.append(f'<line class="axis" x1="{EDGE}" x2="{EDGE + far:.1f}" y1="{floor}" y2="{floor - far:.1f}"/>')
    parts.append(f'<text class="x" x="{EDGE + far / 2:.1f}" y="{floor + 30}">words asked for</text>')
    for name, required, written in points:
        told = escape(f"request {name}: {required:,.0f} asked for, {written:,.0f} written")
        cx, cy = EDGE + place(required), floor - place(written)
        parts.append(
            f'<g class="s0"><title>{told}</title><circle class="hit" cx="{cx:.1f}" cy="{cy:.1f}" r="6"/>'
            f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="2.2"/></g>'
        )
    return "".join([*parts, "</svg>"])
