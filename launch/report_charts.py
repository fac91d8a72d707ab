"""Line charts as inline SVG: axes, a legend's colours by class, and a tooltip on each point."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
MAX_POINTS = 150
"""Markers of one line; a longer line keeps its shape and loses markers."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points (step, value); None is a gap."""

    name: str
    points: tuple[tuple[int, float | None], ...]


def number_text(value: float) -> str:
    """Return a number with three significant digits, without a needless exponent.

    >>> [number_text(x) for x in (0.0, 0.12345, 3.0, 1234.5, 0.00003)]
    ['0', '0.123', '3', '1,234', '3e-05']
    """
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers, 1, 2 or 5 times a power of ten apart, that enclose [low, high].

    >>> ticks(0.0, 0.84)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not low < high:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((f * power for f in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(i * step, digits) for i in range(first, last + 1)]


def line_chart(title: str, series: Sequence[Series]) -> str | None:
    """Return an SVG, or None where no series has a number.

    The vertical axis starts at 0 wherever no value is negative, so that small changes look small.
    """
    values = [v for s in series for _, v in s.points if v is not None]
    if not values:
        return None
    steps = [step for s in series for step, v in s.points if v is not None]
    y_ticks = ticks(min(0.0, min(values)), max(max(values), 0.0))
    x_low, x_high = min(steps), max(steps)
    x_ticks = sorted({round(t) for t in ticks(x_low, x_high) if x_low <= t <= x_high} or {x_low})

    def x(step: float) -> float:
        span = x_high - x_low
        return LEFT + (WIDTH - LEFT - RIGHT) * ((step - x_low) / span if span else 0.5)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} by step">']
    for tick in y_ticks:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{y(tick) + 3.5:.1f}">{number_text(tick)}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for tick in x_ticks:
        parts.append(f'<text class="x" x="{x(tick):.1f}" y="{base + 14}">{tick}</text>')
    parts.append(f'<text class="x" x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 4}">step</text>')
    for i, one in enumerate(series):
        points = [(step, x(step), None if v is None else y(v), v) for step, v in one.points]
        parts.append(_line(i, [(px, py) for _, px, py, _ in points]))
        every = math.ceil(len(points) / MAX_POINTS)
        for step, px, py, value in points[::every]:
            if py is not None and value is not None:
                label = escape(f"step {step}: {one.name} {number_text(value)}")
                parts.append(
                    f'<g class="s{i}"><title>{label}</title><circle class="hit" cx="{px:.1f}" cy="{py:.1f}" r="8"/>'
                    f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2"/></g>'
                )
    return "".join([*parts, "</svg>"])


def _line(index: int, points: Sequence[tuple[float, float | None]]) -> str:
    """Return a path that lifts the pen at gaps."""
    commands: list[str] = []
    pen_down = False
    for px, py in points:
        if py is None:
            pen_down = False
            continue
        commands.append(f"{'L' if pen_down else 'M'}{px:.1f} {py:.1f}")
        pen_down = True
    return f'<path class="line s{index}" d="{" ".join(commands)}"/>'
