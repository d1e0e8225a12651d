"""Plots as SVG text, drawn by hand so that a report needs no plotting library, no script and no network.

Colours and fonts come from the page's style sheet: `s0`, `s1`, ... are series, `grid`, `axis`, `tick` the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, isfinite, log2, log10

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 14, 44
SERIES = 6  # colours that the style sheet has


def columns(labels: Sequence[str], values: Sequence[float], x_title: str, y_title: str) -> str:
    """Columns side by side; `labels[i]` stands below column i, and is left out where it is empty."""
    top = max([*values, 1])
    ticks = nice_ticks(0, top)
    step = (WIDTH - LEFT - RIGHT) / max(1, len(values))
    parts = _frame(ticks, (0, ticks[-1]), x_title, y_title)
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        x, y = LEFT + i * step, _y(value, (0, ticks[-1]))
        if value > 0:
            height = max(1.5, HEIGHT - BOTTOM - y)
            parts.append(
                f'<rect class="s0" x="{x + step * 0.1:.1f}" y="{HEIGHT - BOTTOM - height:.1f}" '
                f'width="{step * 0.8:.1f}" height="{height:.1f}" rx="1.5"><title>{value:,.0f}</title></rect>'
            )
        if label:
            parts.append(_text(x + step / 2, HEIGHT - BOTTOM + 15, label, "tick", "middle"))
    return _svg(parts)


def scatter(expected: Sequence[float], got: Sequence[float], x_title: str, y_title: str) -> str:
    """Points against the diagonal, on which they lie if both agree."""
    low, high = min([*expected, *got]), max([*expected, *got])
    if low == high:
        low, high = low - 1, high + 1
    ticks = nice_ticks(low, high)
    span = (ticks[0], ticks[-1])
    parts = _frame(ticks, span, x_title, y_title)
    parts += [_text(_x(tick, span), HEIGHT - BOTTOM + 15, number(tick), "tick", "middle") for tick in ticks]
    parts.append(
        f'<line class="guide" x1="{_x(span[0], span):.1f}" y1="{_y(span[0], span):.1f}" '
        f'x2="{_x(span[1], span):.1f}" y2="{_y(span[1], span):.1f}"/>'
    )
    for e, g in zip(expected, got, strict=True):
        parts.append(f'<circle class="s0 dot" cx="{_x(e, span):.1f}" cy="{_y(g, span):.1f}" r="2.4"/>')
    return _svg(parts)


def lines(series: Mapping[str, Mapping[int, float]], colours: Sequence[str], x_title: str, y_title: str) -> str:
    """One line per name over whole numbers, on a scale that doubles.

    A name's colour is its place in `colours`, as in `bars`; a legend tells them apart, unless the first is alone.
    """
    xs = sorted({x for points in series.values() for x in points})
    top = max(y for points in series.values() for y in points.values())
    ticks = nice_ticks(0, top)
    spread = max(1.0, log2(xs[-1] / xs[0]))

    def place(x: int) -> float:
        return LEFT + 10 + log2(x / xs[0]) / spread * (WIDTH - LEFT - RIGHT - 20)

    parts = _frame(ticks, (0, ticks[-1]), x_title, y_title)
    parts += [_text(place(x), HEIGHT - BOTTOM + 15, str(x), "tick", "middle") for x in xs if log2(x).is_integer()]
    legend = ""
    for name, points in series.items():
        colour = colours.index(name) % SERIES
        at = [(place(x), _y(y, (0, ticks[-1])), x, y) for x, y in sorted(points.items())]
        path = " ".join(f"{'M' if j == 0 else 'L'}{x:.1f} {y:.1f}" for j, (x, y, _, _) in enumerate(at))
        parts.append(f'<path class="s{colour} line" d="{path}"/>')
        for x, y, rows, value in at:
            parts.append(
                f'<circle class="s{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                f"<title>{escape(name)}, {rows}: {value:.4g}</title></circle>"
            )
        legend += f'<span><i class="key k{colour}"></i>{escape(name)}</span>'
    alone = list(series) == list(colours[:1])
    return _svg(parts) + ("" if alone else f'<p class="legend">{legend}</p>')


def bars(values: Mapping[str, float], texts: Mapping[str, str]) -> str:
    """Lying bars, each with its name on the left and its text at the end."""
    row, left, right = 34, 130, 90
    top = max([*values.values(), 1e-12])
    height = row * len(values) + 10
    parts = []
    for i, (name, value) in enumerate(values.items()):
        y = 5 + i * row
        length = max(2.0, (WIDTH - left - right) * value / top)
        parts.append(_text(left - 10, y + row / 2 + 4, name, "name", "end"))
        parts.append(
            f'<rect class="s{i % SERIES}" x="{left}" y="{y + 6}" width="{length:.1f}" height="{row - 12}" rx="2"/>'
        )
        parts.append(_text(left + length + 8, y + row / 2 + 4, texts[name], "tick", "start"))
    return _svg(parts, height)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `count` of them."""
    rough = max((high - low) / max(1, count - 1), 1e-12)
    unit = 10 ** floor(log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * 0.999)
    first = floor(low / step + 1e-9)
    ticks = [first * step]
    while ticks[-1] < high - step * 1e-9:
        ticks.append((first + len(ticks)) * step)
    return ticks if len(ticks) > 1 else [*ticks, ticks[0] + step]


def number(value: float) -> str:
    """A short spelling for people."""
    if not isfinite(value):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:.4g}" if value % 1 else f"{value:,.0f}"


def _frame(ticks: Sequence[float], span: tuple[float, float], x_title: str, y_title: str) -> list[str]:
    parts = []
    for tick in ticks:
        y = _y(tick, span)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 8, y + 4, number(tick), "tick", "end"))
    bottom = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_title, "title", "middle"))
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text class="title" text-anchor="middle" transform="translate(13 {middle:.0f}) rotate(-90)">'
        f"{escape(y_title)}</text>"
    )
    return parts


def _x(value: float, span: tuple[float, float]) -> float:
    return LEFT + (value - span[0]) / (span[1] - span[0]) * (WIDTH - LEFT - RIGHT)


def _y(value: float, span: tuple[float, float]) -> float:
    return HEIGHT - BOTTOM - (value - span[0]) / (span[1] - span[0]) * (HEIGHT - BOTTOM - TOP)


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(parts: Sequence[str], height: int = HEIGHT) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{"".join(parts)}</svg>'
