"""A chart as a picture: one bar for each phase, one colour for each place. Source: SVG 1.1, shapes and text."""

from __future__ import annotations

from html import escape

from casemate.vm.boot_chart import Chart

COLOURS = {
    "host": "#6b7280", "kernel": "#2563eb", "init": "#0d9488", "agent": "#d97706", "container": "#be185d",
}  # fmt: skip
ROW, BAR, LEFT, WIDE, TOP, RIGHT = 22, 14, 250, 760, 64, 90
_STEPS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)
MOST_LINES = 12


def render(chart: Chart) -> str:
    """The picture, a whole SVG file."""
    scale = WIDE / chart.total if chart.total else 0.0
    bottom = TOP + ROW * len(chart.phases)
    width, height = LEFT + WIDE + RIGHT, bottom + 50
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="15" font-weight="bold">{escape(chart.title)}</text>',
        f'<text x="12" y="44" fill="#4b5563">{chart.total:.0f} ms from the start of the VMM to its end</text>',
    ]
    step = next((step for step in _STEPS if chart.total / step <= MOST_LINES), _STEPS[-1])
    at = 0
    while at <= chart.total:
        x = LEFT + at * scale
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#4b5563">{at}</text>')
        at += step
    for row, phase in enumerate(chart.phases):
        y = TOP + row * ROW
        x, length = LEFT + phase.begin * scale, max(phase.length * scale, 1.0)
        parts.append(f'<text x="{LEFT - 10}" y="{y + BAR - 3}" text-anchor="end">{escape(phase.name)}</text>')
        colour = COLOURS.get(phase.where, "#000000")
        parts.append(
            f'<rect x="{x:.1f}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{colour}">'
            f"<title>{escape(phase.where)}: {escape(phase.name)}, {phase.length:.1f} ms</title></rect>"
        )
        parts.append(f'<text x="{x + length + 4:.1f}" y="{y + BAR - 3}" fill="#4b5563">{phase.length:.1f}</text>')
    x = LEFT
    for where, colour in COLOURS.items():
        parts.append(f'<rect x="{x}" y="{bottom + 28}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 15}" y="{bottom + 37}">{where}</text>')
        x += 100
    return "\n".join([*parts, "</svg>", ""])
