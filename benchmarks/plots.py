"""Plots of cost against size, as SVG: one file for each growth workload and place."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from benchmarks.harness import Result

WIDTH, HEIGHT = 560, 320
FONT = 'font-family="sans-serif" font-size="12"'
LEFT, RIGHT, TOP, BOTTOM = 70, 90, 46, 48
COLOURS = {"ours": "#1a7f37", "raw": "#57606a", "ORM": "#cf222e"}

Points = list[tuple[float, float]]


def write(folder: Path, results: Mapping[str, Sequence[Result]]) -> None:
    """Write a file for each result whose sides are called ``... at SIZE``."""
    folder.mkdir(parents=True, exist_ok=True)
    for place, of_place in results.items():
        for result in of_place:
            lines = _lines(result)
            if lines:
                stem = re.sub(r"[^a-z]+", "-", f"{place} {result.name}".lower()).strip("-")
                (folder / f"{stem}.svg").write_text(_svg(f"{place}: {result.name}", lines))


def _lines(result: Result) -> dict[str, Points]:
    lines: dict[str, Points] = {}
    for side in result.sides:
        if found := re.fullmatch(r"(.+) at (\d+)", side):
            lines.setdefault(found[1], []).append((float(found[2]), result.cost(side).median * 1e6))
    return lines


def _svg(title: str, lines: Mapping[str, Points]) -> str:
    points = [point for line in lines.values() for point in line]
    sizes = sorted({size for size, _ in points})
    low, high = (10.0 ** place(math.log10(pick(cost for _, cost in points))) for place, pick in _ENDS)

    def x(size: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(size / sizes[0]) / math.log(sizes[-1] / sizes[0])

    def y(cost: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * math.log(cost / low) / math.log(high / low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" {FONT}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{escape(title)}</text>',
    ]
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        at = y(10.0**power)
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#d0d7de"/>',
            f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{10**power:,}</text>',
        ]
    parts += [
        f'<text x="{x(size):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{size:,.0f}</text>' for size in sizes
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts += [
        f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">how many there were before</text>',
        f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2})">µs a call</text>',
    ]
    for name, line in lines.items():
        colour = COLOURS.get(name, "black")
        path = " ".join(f"{x(size):.1f},{y(cost):.1f}" for size, cost in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(size):.1f}" cy="{y(cost):.1f}" r="3" fill="{colour}"/>' for size, cost in line]
        size, last = line[-1]
        parts.append(
            f'<text x="{x(size) + 8:.1f}" y="{y(last) + 4:.1f}" fill="{colour}">{escape(name)} {last:,.0f}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


_ENDS = ((math.floor, min), (math.ceil, max))
