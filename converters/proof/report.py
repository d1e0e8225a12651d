"""`report.html`: one self-contained page of what was compared and what it costs, for a person to look at.

It shows what `parity.json` and `profile.json` say, and adds only the points of the agreement plots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from converters.proof import plots
from converters.proof.parity import HISTOGRAM_DECADES

PAGE = "report.html"
POINTS = 400  # per agreement plot
MAX_AGREEMENTS = 8  # plots of agreement: each is some 25 kB of a page
_TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True, slots=True)
class Cost:
    """A named model's size and its entry of `profile.json` (empty if it was not measured)."""

    name: str
    size_bytes: int
    profile: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything on a page.

    Attributes:
        against: What the answers were compared with, in words.
        parity: `parity.json`.
        points: Per output, pairs of values (expected, got).
        costs: The artifact first, then what it is shown beside.
        facts: Lines of the table at the end.
    """

    title: str
    subtitle: str
    against: str
    parity: Mapping[str, Any]
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    costs: tuple[Cost, ...]
    facts: tuple[tuple[str, str], ...]


def sample_points(expected: Sequence[np.ndarray], got: Sequence[np.ndarray]) -> tuple[list[float], list[float]]:
    """At most `POINTS` finite pairs of values of one output, spread evenly; none for text or unlike shapes."""
    if [a.shape for a in expected] != [a.shape for a in got] or any(a.dtype.kind not in "fiub" for a in expected):
        return [], []
    e = np.concatenate([array.astype(np.float64).ravel() for array in expected])
    g = np.concatenate([array.astype(np.float64).ravel() for array in got])
    keep = np.flatnonzero(np.isfinite(e) & np.isfinite(g))
    picked = keep[np.unique(np.linspace(0, len(keep) - 1, min(POINTS, len(keep))).astype(int))] if len(keep) else keep
    return e[picked].tolist(), g[picked].tolist()


def render(report: Report) -> str:
    """The page's HTML."""
    parity = report.parity
    executed = parity.get("executed", True)
    failures = [f"{o['name']}: {text}" for o in parity["outputs"] for text in o["failures"]]
    failures += parity.get("gates", [])
    verdict, kind = ("Near enough", "passed") if parity["passed"] else ("Not near enough", "failed")
    if not executed:
        reason = parity.get("unexecuted") or "built, not executed here"
        verdict, kind = reason.partition(":")[0].capitalize(), "unknown"
    body = [
        _tiles(report),
        _list("What is wrong", failures),
        _outputs(report),
        _evaluation(parity),
        _costs(report.costs),
        _list("Notes", parity.get("notes", [])),
        _cases(parity),
        _facts(report.facts),
    ]
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(report.title),
        subtitle=escape(report.subtitle),
        verdict=verdict,
        verdict_class=kind,
        body="\n".join(filter(None, body)),
    )


def _tiles(report: Report) -> str:
    found: list[tuple[str, str]] = []
    outputs = report.parity["outputs"]
    noise = [o["sqnr_db"] for o in outputs if o["sqnr_db"] is not None]
    top1 = [o["top1"] for o in outputs if o["top1"] is not None]
    worst = [o["worst_abs"] for o in outputs if o["worst_abs"] is not None]
    if worst:
        found.append((plots.number(max(worst)) if max(worst) else "exact", "worst difference"))
    if noise:
        found.append((f"{min(noise):.1f} dB", "signal to noise"))
    if top1:
        found.append((f"{min(top1):.1%}", "same top class"))
    own = report.costs[0] if report.costs else None
    if own is not None:
        found.append((size_text(own.size_bytes), "on disk"))
        seconds = own.profile.get("seconds_by_rows", {})
        if seconds:
            found.append((time_text(float(seconds["1"])), "one row"))
            best = own.profile.get("best_rows", 1)
            found.append((f"{best} rows", "best batch"))
        if "load_s" in own.profile:
            found.append((time_text(own.profile["load_s"]), "cold load"))
            found.append((size_text(own.profile["rss_bytes"]), "memory"))
        if "gpu_bytes" in own.profile:
            found.append((size_text(own.profile["gpu_bytes"]), "on the GPU"))
    tiles = "".join(f'<div class="tile"><b>{value}</b><span>{what}</span></div>' for value, what in found)
    return f'<div class="tiles">{tiles}</div>'


def _outputs(report: Report) -> str:
    head = ("output", "values", "max abs", "max rel", "out of tolerance", "signal to noise", "cosine", "top class")
    rows = [
        (
            o["name"],
            f"{o['elements']:,}",
            _maybe(o["worst_abs"], "{:.2e}"),
            _maybe(o["worst_rel"], "{:.2e}"),
            f"{o['share_out']:.2%}",
            _maybe(o["sqnr_db"], "{:.1f} dB", "exact" if o["worst_abs"] == 0 else "–"),
            _maybe(o["cosine"], "{:.6f}"),
            _maybe(o["top1"], "{:.1%}"),
        )
        for o in report.parity["outputs"]
    ]
    t = report.parity["tolerance"]
    executed = report.parity.get("executed", True)
    why = (
        f"An element is out of tolerance if it is off by more than {t['rel']:g} of its value plus {t['abs_of_peak']:g} "
        f"of the output's largest. Allowed: {t['max_share_out']:.2%} of elements; needed: {t['min_sqnr_db']:g} dB, "
        f"{t['min_top1']:.0%} same top class. Reason: {t['why']}."
    )
    parts = [
        f"<h2>{_whose(report)} compared with {escape(report.against)}</h2>",
        f'<div class="card">{_table(head, rows)}<p class="why">{escape(why)}</p></div>',
    ]
    cards: list[list[str]] = []  # of a grid: a first output's two plots side by side, all others in one
    for i, o in enumerate(report.parity["outputs"]):
        if i <= MAX_AGREEMENTS:
            cards.append([])
        if o.get("histogram"):
            labels = ["exact", *(f"1e{d}" if d % 2 == 0 and d > -10 else "" for d in HISTOGRAM_DECADES)]
            plot = plots.columns(labels, o["histogram"], "relative error of an element (up to)", "elements")
            cards[-1].append(f"<h3>{escape(o['name'])}: errors</h3>{plot}")
        expected, got = report.points.get(o["name"], ((), ()))
        if expected and i < MAX_AGREEMENTS:
            plot = plots.scatter(expected, got, report.against, "this model" if executed else "the ONNX file")
            title = f"{escape(o['name'])}: agreement ({len(expected)} of {o['elements']:,} values)"
            cards[-1].append(f"<h3>{title}</h3>{plot}")
    for grid in filter(None, cards):
        parts.append(f'<div class="pair" style="margin-top:14px">{"".join(map(_card, grid))}</div>')
    return "\n".join([*parts, *(f'<p class="why">{escape(text)}</p>' for text in _not_drawn(report))])


def _not_drawn(report: Report) -> list[str]:
    """Which plots the page does not have, and why."""
    outputs = report.parity["outputs"]
    plain = [o["name"] for o in outputs if not o.get("histogram")]
    further = [o["name"] for o in outputs[MAX_AGREEMENTS:] if report.points.get(o["name"], ((), ()))[0]]
    texts = []
    if plain:
        texts.append(
            f"No errors are drawn of {', '.join(plain)}: only finite floating values that both sides gave have a "
            "relative error. Whole numbers and text are equal or not; the share that differs is out of tolerance."
        )
    if further:
        texts.append(
            f"No agreement is drawn of {', '.join(further)}: only the first {MAX_AGREEMENTS} outputs have that plot."
        )
    return texts


def _whose(report: Report) -> str:
    return "Answers" if report.parity.get("executed", True) else "Answers of the ONNX file it was built from,"


def _evaluation(parity: Mapping[str, Any]) -> str:
    found = parity.get("evaluation")
    if not found:
        return ""
    values = {"source": found["source"], "this model": found["converted"]}
    known = {name: value for name, value in values.items() if value is not None}
    allowed = "" if found["max_drop"] is None else f"; at most {found['max_drop']:g} is allowed"
    drop = "" if found["drop"] is None else f"Drop: {found['drop']:.4f}{allowed}."
    plot = plots.bars(known, {name: f"{value:.4f}" for name, value in known.items()})
    title = f"{found['metric']} of {found['output']} on {found['rows']:,} labelled rows"
    return f'<h2>{escape(title)}</h2><div class="card narrow">{plot}<p class="why">{drop}</p></div>'


def _costs(costs: Sequence[Cost]) -> str:
    if not costs:
        return ""
    sizes = plots.bars({c.name: c.size_bytes for c in costs}, {c.name: size_text(c.size_bytes) for c in costs})
    latencies = {
        c.name: {int(rows): float(s) * 1e3 for rows, s in c.profile["seconds_by_rows"].items()}
        for c in costs
        if c.profile.get("seconds_by_rows")
    }
    names = [c.name for c in costs]
    cards = []
    if latencies:
        of_a_row = {name: {rows: ms / rows for rows, ms in curve.items()} for name, curve in latencies.items()}
        across = "rows in a batch"
        cards.append(f"<h3>Latency of a batch</h3>{plots.lines(latencies, names, across, 'milliseconds a batch')}")
        cards.append(f"<h3>Time per row</h3>{plots.lines(of_a_row, names, across, 'milliseconds a row')}")
    cards.append(f"<h3>Size on disk</h3>{sizes}")
    own = costs[0].profile
    where = ""
    if "cpu_model" in own:
        models = " and ".join(own[name] for name in ("gpu_model", "cpu_model") if own.get(name))
        where = f'<p class="why">Measured on {escape(models)}, {own["threads"]} thread(s) a call.</p>'
    return f'<h2>Costs</h2><div class="pair">{"".join(_card(c) for c in cards)}</div>{where}'


def _cases(parity: Mapping[str, Any]) -> str:
    sizes: dict[str, list[int]] = {}
    for case in parity["cases"]:
        sizes.setdefault(case["inputs"], []).append(case["rows"])
    rows = [
        (origin, str(len(found)), ", ".join(map(str, sorted(set(found)))), str(sum(found)))
        for origin, found in sizes.items()
    ]
    head = ("inputs", "calls", "rows of a call", "rows")
    return f'<h2>Calls compared</h2><div class="card">{_table(head, rows)}</div>'


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f'<tr><td>{escape(k)}</td><td class="text">{escape(v)}</td></tr>' for k, v in facts)
    return f'<h2>Origin</h2><div class="card"><table>{rows}</table></div>'


def _list(title: str, texts: Sequence[str]) -> str:
    if not texts:
        return ""
    return f"<h2>{title}</h2><ul>{''.join(f'<li>{escape(text)}</li>' for text in texts)}</ul>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _card(inner: str) -> str:
    return f'<div class="card">{inner}</div>'


def _maybe(value: Any, form: str, none: str = "–") -> str:
    return none if value is None else form.format(value)


def size_text(size_bytes: float) -> str:
    """Bytes for people."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.3g} {unit}"
    return f"{size_bytes:.0f} B"


def time_text(seconds: float) -> str:
    """Seconds for people."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.0f} ns"
