"""Log-log line plots as small SVG files: the same points give the same bytes."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 840, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 290, 44, 52
COLOURS = ("#0969da", "#8250df", "#cf222e", "#bf8700", "#57606a", "#1a7f37")
FONT = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"


def log_log_plot(
    title: str, x_title: str, y_title: str, lines: Mapping[str, Points], x_ticks: Sequence[float]
) -> str:
    """Return an SVG of lines, each labelled at its right end."""
    x_values = [x for points in lines.values() for x, _ in points]
    y_values = [y for points in lines.values() for _, y in points]
    across = _Scale(min(x_values), max(x_values), LEFT, WIDTH - RIGHT)
    low, high = (
        10 ** math.floor(math.log10(min(y_values))),
        10 ** math.ceil(math.log10(max(y_values))),
    )
    up = _Scale(low, max(high, 10 * low), HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="{FONT}" font-size="12" role="img" aria-labelledby="title">',
        f'  <title id="title">{escape(title)}</title>',
        f'  <rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'  <text x="{LEFT}" y="24" font-size="15" font-weight="600" fill="#24292f">'
        f"{escape(title)}</text>",
        *_axes(across, up, x_ticks),
        f'  <text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{HEIGHT - 12}" text-anchor="middle" '
        f'fill="#24292f">{escape(x_title)}</text>',
        f'  <text transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2:g}) rotate(-90)" '
        f'text-anchor="middle" fill="#24292f">{escape(y_title)}</text>',
        *_lines(across, up, lines),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Scale:
    """From a value to its place along an axis."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = low, high
        self._log_low, self._log_high = math.log(low), math.log(high)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        span = self._log_high - self._log_low or 1.0
        part = (math.log(value) - self._log_low) / span
        return round(self._start + part * (self._end - self._start), 1)


def _axes(across: _Scale, up: _Scale, x_ticks: Sequence[float]) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = ['  <g stroke="#d0d7de">']
    decade = up.low
    decades = []
    while decade <= up.high * 1.001:
        decades.append(decade)
        parts.append(f'    <path d="M{LEFT} {up(decade):g}H{right}"/>')
        decade *= 10
    parts += [f'    <path d="M{across(x):g} {TOP}V{bottom}"/>' for x in x_ticks]
    parts += ["  </g>", '  <g fill="#57606a">']
    parts += [
        f'    <text x="{LEFT - 8}" y="{up(y) + 4:g}" text-anchor="end">{y:g}</text>'
        for y in decades
    ]
    parts += [
        f'    <text x="{across(x):g}" y="{bottom + 18}" text-anchor="middle">{x:,g}</text>'
        for x in x_ticks
    ]
    return [*parts, "  </g>"]


def _lines(across: _Scale, up: _Scale, lines: Mapping[str, Points]) -> list[str]:
    parts = []
    labels = _apart({name: up(points[-1][1]) + 4 for name, points in lines.items()})
    for index, (name, points) in enumerate(lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        places = [f"{across(x):g} {up(y):g}" for x, y in points]
        parts.append(
            f'  <path d="M{"L".join(places)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        dots = (place.split() for place in places)
        parts += [f'  <circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in dots]
        x = max(across(points[-1][0]) + 8, 0)
        parts.append(
            f'  <text x="{x:g}" y="{labels[name]:g}" fill="{colour}">{escape(name)}</text>'
        )
    return parts


def _apart(places: Mapping[str, float], gap: float = 14) -> dict[str, float]:
    """Move labels down until none covers another."""
    found: dict[str, float] = {}
    for name in sorted(places, key=lambda name: places[name]):
        lowest = max(found.values(), default=-math.inf)
        found[name] = round(max(places[name], lowest + gap), 1)
    return found
