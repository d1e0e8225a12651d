"""Charts as SVG text to put inside a page: no files, no network, no scripts. Latencies come in seconds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure

COLORS = ("#2563eb", "#f59e0b", "#0d9488", "#e11d48", "#7c3aed", "#64748b", "#84cc16", "#0ea5e9")
_INK, _GRID, _LIMIT, _MARK = "#475569", "#e5e9f0", "#dc2626", "#9333ea"
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, sharp, searchable
    "svg.hashsalt": "prism",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
}
Values = Sequence[float | int | None]


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart of a stack. `kind` is how the series are drawn; `limit` is a line across in the objective's colour."""

    title: str
    series: Mapping[str, Values]
    kind: Literal["line", "step", "share"] = "line"
    limit: float | None = None
    log: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """A named stretch of the x axis."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Mark:
    """A named moment on the x axis."""

    name: str
    at: float


def bars(groups: Sequence[str], series: Mapping[str, Values], ylabel: str = "", percent: bool = False) -> str:
    """Bars side by side, one group per name in `groups`, one colour per series. With `percent`, values are shares."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        width = 0.8 / max(len(series), 1)
        at = np.arange(len(groups))
        for i, (name, values) in enumerate(series.items()):
            heights = _numbers(values) * (100 if percent else 1)
            drawn = axes.bar(
                at + (i - (len(series) - 1) / 2) * width, heights, width * 0.92, label=name, color=_color(i)
            )
            axes.bar_label(drawn, fmt="%.1f %%" if percent else "%g", fontsize=8, padding=2, color=_INK)
        axes.set_xticks(at, groups)
        axes.set_ylabel(ylabel or ("%" if percent else ""))
        axes.margins(y=0.15)
        axes.grid(visible=False, axis="x")
        if len(series) > 1:
            _legend_above(axes)

    return _svg(draw, 9, 3.0)


def lines(
    x: Values,
    series: Mapping[str, Values],
    xlabel: str = "",
    ylabel: str = "",
    log_y: bool = False,
    limit: float | None = None,
    markers: bool = False,
) -> str:
    """Lines over a common x axis; None leaves a gap."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (name, values) in enumerate(series.items()):
            axes.plot(
                _numbers(x), _numbers(values), label=name, color=_color(i), marker="o" if markers else "", markersize=4
            )
        if log_y:
            axes.set_yscale("log")
            _plain_ticks(axes.yaxis)
        if limit is not None:
            axes.axhline(limit, color=_LIMIT, linewidth=1.2, linestyle=(0, (4, 3)), label="objective")
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if len(series) > 1 or limit is not None:
            _legend_above(axes)

    return _svg(draw, 9, 3.2)


def histogram(counts: Mapping[str, float], xlabel: str = "", ylabel: str = "") -> str:
    """One bar per name, in the order given, close together."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        drawn = axes.bar(list(counts), list(counts.values()), 0.94, color=COLORS[0])
        axes.bar_label(drawn, fmt="%g", fontsize=8, padding=2, color=_INK)
        axes.set_xlim(-0.6, max(len(counts), 8) - 0.4)  # a few bars stay bars
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.margins(y=0.15)
        axes.grid(visible=False, axis="x")

    return _svg(draw, 9, 2.6)


def stack(t_s: Sequence[float], panels: Sequence[Panel], spans: Sequence[Span] = (), marks: Sequence[Mark] = ()) -> str:
    """Panels below one another on one time axis, with the spans and marks drawn across all of them."""

    def draw(figure: Figure) -> None:
        all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        t = np.asarray(t_s, dtype=float)
        for axes, panel in zip(all_axes, panels, strict=True):
            _draw_panel(axes, t, panel)
            for i, span in enumerate(spans):
                if i % 2 == 0:
                    axes.axvspan(span.start, span.end, color="#f1f5f9", zorder=-1, linewidth=0)
            for mark in marks:
                axes.axvline(mark.at, color=_MARK, linewidth=1.1, linestyle=(0, (2, 2)), zorder=0)
        for i, mark in enumerate(marks):
            all_axes[i % len(all_axes)].annotate(
                mark.name,
                (mark.at, 0.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=7.5,
                color=_MARK,
            )
        for span in spans:
            all_axes[0].annotate(
                span.name,
                ((span.start + span.end) / 2, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(0, 16),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=_INK,
            )
        if len(t):
            all_axes[-1].set_xlim(t[0], t[-1] + 1)
        all_axes[-1].set_xlabel("seconds since the start")

    return _svg(draw, 10, 1.55 * len(panels) + 0.7)


def tail(
    distributions: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    limit_s: float | None = None,
    marks: Mapping[str, float] | None = None,
) -> str:
    """Latency in seconds against the share of answers that took longer, both logarithmic; `marks` are shares to
    label, such as `{"p99": 0.01}`."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (name, (values, shares)) in enumerate(distributions.items()):
            axes.step(np.asarray(values) * 1e3, shares, where="post", label=name, color=_color(i))
        for name, share in (marks or {}).items():
            axes.axhline(share, color=_GRID, linewidth=0.8)
            axes.annotate(name, (1.0, share), xycoords=("axes fraction", "data"), fontsize=8, color=_INK, va="center")
        if limit_s is not None:
            axes.axvline(limit_s * 1e3, color=_LIMIT, linewidth=1.2, linestyle=(0, (4, 3)), label="objective")
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_ticks(axes.xaxis)
        axes.yaxis.set_major_formatter(lambda share, _: f"{share * 100:g} %")
        axes.set_xlabel("latency from the due time, ms")
        axes.set_ylabel("share of answers slower")
        if len(distributions) > 1 or limit_s is not None:
            _legend_above(axes)

    return _svg(draw, 9, 3.4)


def _draw_panel(axes: Any, t: Any, panel: Panel) -> None:
    axes.set_title(panel.title)
    rows = {name: _numbers(values) for name, values in panel.series.items()}
    if panel.kind == "share" and rows:
        values = np.nan_to_num(np.vstack(list(rows.values())))
        total = values.sum(axis=0)
        shares = np.divide(values * 100, total, out=np.zeros_like(values), where=total > 0)
        axes.stackplot(
            t, shares, labels=list(rows), colors=[_color(i) for i in range(len(rows))], step="post", alpha=0.8
        )
        axes.set_ylim(0, 100)
    else:
        for i, (name, values) in enumerate(rows.items()):
            color = COLORS[3] if name == "failed" else _color(i)
            if panel.kind == "step":
                # A gap in a count that changes rarely means nobody asked, not that it was gone.
                axes.step(t, _held(values), where="post", label=name, color=color)
            else:
                axes.plot(t, values, label=name, color=color, marker="." if len(t) < 40 else "", markersize=4)
        if panel.limit is not None:
            axes.axhline(panel.limit, color=_LIMIT, linewidth=1.1, linestyle=(0, (4, 3)), label="objective")
        if panel.log:
            axes.set_yscale("log")
            _plain_ticks(axes.yaxis)
        else:
            axes.set_ylim(0, axes.get_ylim()[1] * 1.06 or 1)
    if len(rows) > 1 or panel.limit is not None:
        _legend_above(axes)


def _plain_ticks(axis: Any) -> None:
    """Label 1, 2 and 5 of each decade of a logarithmic axis, as people write numbers."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")


def _legend_above(axes: Any) -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=6, borderaxespad=0.1, handlelength=1.4)


def _held(values: Any) -> Any:
    known = np.where(~np.isnan(values), np.arange(len(values)), -1)
    last = np.maximum.accumulate(known)
    return np.where(last >= 0, values[np.maximum(last, 0)], np.nan)


def _numbers(values: Values) -> Any:
    return np.array([np.nan if value is None else float(value) for value in values])


def _color(i: int) -> str:
    return COLORS[i % len(COLORS)]


def _svg(draw: Callable[[Figure], None], width: float, height: float) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        text = StringIO()
        # Without metadata the file names no creator, date or vocabulary; the prolog has no place inside HTML.
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    # Names such as axes_1 repeat from chart to chart and nothing refers to them.
    return re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
