"""A heat map: how many tokens have which two probabilities, and the SVG that shows it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 30


@dataclass(frozen=True)
class Heat:
    """Counts over two axes with the same bins, of which the first is drawn at the right and at
    the top.

    Attributes:
        label: of the whole.
        down, across: labels of the vertical and of the horizontal axis.
        counts: one list for each bin of the vertical axis.
        edges: the upper edge of each bin as text.
    """

    label: str
    down: str
    across: str
    counts: Sequence[Sequence[int]]
    edges: Sequence[str]

    @property
    def known(self) -> bool:
        """Whether anything is counted."""
        return any(map(any, self.counts))


def draw_heat(heat: Heat) -> str:
    """HTML with an SVG, whose cells say their values when pointed at. Every text is escaped."""
    size = len(heat.edges)
    width, height = (WIDTH - LEFT - RIGHT) / size, (HEIGHT - TOP - BOTTOM) / size
    most = max(max(row) for row in heat.counts)
    whole = sum(map(sum, heat.counts))
    parts = []
    for row, counts in enumerate(heat.counts):
        for column, count in enumerate(counts):
            if not count:
                continue
            x, y = WIDTH - RIGHT - (column + 1) * width, TOP + row * height
            # On a logarithmic scale: most tokens are in few cells.
            strength = 0.12 + 0.88 * math.log1p(count) / math.log1p(most)
            said = (
                f"{heat.down} up to {heat.edges[row]}, {heat.across} up to {heat.edges[column]}: "
                f"{count} ({count / whole:.1%})"
            )
            parts.append(
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
                f'height="{height:.1f}" fill-opacity="{strength:.2f}"><title>{escape(said)}</title>'
                "</rect>"
            )
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for place in range(0, size, 4):
        x, y = right - place * width, TOP + place * height
        edge = escape(heat.edges[place])
        parts.append(
            f'<text class="tick end" x="{x:.1f}" y="{bottom + 13}">{edge}</text>'
            f'<text class="tick end" x="{LEFT - 6}" y="{y + 7:.1f}">{edge}</text>'
        )
    parts.append(
        f'<path class="rule" d="M{LEFT} {bottom}L{right} {TOP}"/>'
        f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
        f'<text class="tick end" x="{right}" y="{HEIGHT - 3}">{escape(heat.across)}</text>'
    )
    label = f"{heat.label}: {heat.down} by {heat.across}, {whole} tokens"
    return (
        f'<div class="heat"><div class="legend"><span>{escape(heat.down)}</span></div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg></div>"
    )
