"""A load test's report: one HTML page, with JSON and CSV beside it for programs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.measure import shares
from loadtest.page import KeyFigure, Mood, Page
from loadtest.plots import Mark, Panel, Span, histogram, lines, stack, tail
from loadtest.result import LoadResult, Machine, PhaseResult
from loadtest.samples import COLUMNS, Samples

HEADLINES: dict[str, tuple[Mood, str]] = {
    "ok": ("good", "Valid run, objective kept"),
    "missed": ("warn", "Valid run, objective missed"),
    "invalid": ("bad", "Invalid run: it says nothing about the server"),
}
PERCENTILE_MARKS = {"p50": 0.5, "p90": 0.1, "p99": 0.01, "p99.9": 0.001}


def write_files(result: LoadResult, samples: Samples, out: Path) -> LoadResult:
    """Write `result.json`, `phases.csv`, `seconds.csv`, `samples.npz` and `report.html` into `out`.

    Returns the result with the names of these files.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "report": out / "report.html",
        "json": out / "result.json",
        "phases": out / "phases.csv",
        "seconds": out / "seconds.csv",
        "samples": out / "samples.npz",
    }
    result = replace(result, files={name: str(file) for name, file in files.items()})
    np.savez_compressed(
        files["samples"], versions=np.array(samples.versions), **{name: getattr(samples, name) for name in COLUMNS}
    )
    rows = [_phase_row(phase) for phase in (*result.phases, result.total)]
    _write_csv(files["phases"], list(rows[0]), [list(row.values()) for row in rows])
    _write_csv(files["seconds"], *_second_rows(result))
    result.write(files["json"])
    page(result).write(files["report"])
    return result


def page(result: LoadResult) -> Page:
    """The report of one run."""
    load = result.load
    report = Page(f"Load test: {load.scenario}", load.about)
    add_load(report, result)
    report.section("How it was measured")
    report.pairs(
        {
            "server": result.host,
            "started": result.started,
            "loop": "open: arrivals never wait for answers"
            if load.loop == "open"
            else "CLOSED: clients wait for answers, stalls hardly show",
            "seed": load.seed,
            "rate 1.0 means": f"{load.rate:g}/s",
            "warm-up, not measured": f"{load.warmup_s:g} s",
            "arrival gaps, CV": _plain(load.gap_cv),
            "dispersion over 10 s": _plain(load.dispersion_10s),
            "largest body": f"{load.body_bytes} bytes",
            "generator": ", ".join(f"{name} {value}" for name, value in load.generator.items()),
            "generator CPU": "–" if result.generator_cpu is None else f"{result.generator_cpu:.0%} of a core",
            "CPU": f"{result.machine.cpu}, {result.machine.cores} cores (load {result.machine.load_average[0]:g})",
            "system": f"{result.machine.system}, Python {result.machine.python}",
            "memory": f"{result.machine.memory_bytes / (1 << 30):.1f} GiB",
            "versions": ", ".join(f"{name} {number}" for name, number in _versions(result.machine) if number),
        }
    )
    add_server(report, result.about_server)
    report.section("What was asked for")
    report.table(
        ["phase", "pattern", "seconds", "parameters"],
        [
            [
                phase["name"],
                phase["pattern"],
                phase["duration_s"],
                ", ".join(f"{k} {v}" for k, v in phase.items() if k not in ("name", "pattern", "duration_s")),
            ]
            for phase in load.phases
        ],
    )
    report.table(
        ["model", "protocol", "encoding", "rows", "weight", "sample", "keys"],
        [
            [t["model"], t["protocol"], t["encoding"], t["rows"], t["weight"], t["sample"] or "generated", _keys(t)]
            for t in load.targets
        ],
    )
    return report


def add_load(report: Page, result: LoadResult) -> None:
    """The verdict, figures and charts of a run, as part of `report`."""
    mood, headline = HEADLINES[result.verdict.status]
    report.verdict(mood, f"{headline} ({result.load.objective})", [*result.verdict.reasons, *result.verdict.notes])
    total = result.total
    report.figures(
        [
            KeyFigure("offered", f"{total.offered_rps:.1f}/s", f"{total.counts.offered} requests"),
            KeyFigure("achieved", f"{total.achieved_rps:.1f}/s", f"{total.counts.answered} answered"),
            KeyFigure("goodput", f"{total.goodput_rps:.1f}/s", "answered within the objective"),
            KeyFigure("p50", ms(total.p50_s), "from the due time"),
            KeyFigure("p99", ms(total.p99_s), "from the due time"),
            KeyFigure("failed", str(total.counts.failed), f"and {total.counts.dropped} dropped"),
        ]
    )
    phases = (*result.phases, replace(total, name="all")) if len(result.phases) > 1 else result.phases
    report.section("Phases")
    report.table(
        ["phase", "offered/s", "achieved/s", "goodput/s", "p50", "p90", "p99", "p99.9", "max", "failed", "dropped"],
        [
            [
                p.name,
                f"{p.offered_rps:.1f}",
                f"{p.achieved_rps:.1f}",
                f"{p.goodput_rps:.1f}",
                *(ms(v) for v in (p.p50_s, p.latency.p90_s, p.p99_s, p.latency.p999_s, p.latency.max_s)),
                p.counts.failed,
                p.counts.dropped,
            ]
            for p in phases
        ],
        "Latency of answers, from the moment each request was due. Offered = answered + failed + dropped.",
    )
    report.table(
        ["phase", "service p50", "service p99", "sent late p99", "batch rows", "queue rows", "replicas", "versions"],
        [
            [
                p.name,
                ms(p.service.p50_s),
                ms(p.service.p99_s),
                ms(p.lag.p99_s),
                _plain(p.server.batch_rows),
                _plain(p.server.queue_rows_max),
                replicas(p),
                ", ".join(f"{name}: {share:.1%}" for name, share in shares(p.counts.versions).items()) or "–",
            ]
            for p in phases
        ],
        "Service time counts from sending. Batch size (mean), queue (most) and replicas as the server reported them.",
    )
    if result.targets:
        _add_targets(report, result.targets)
    if total.counts.errors:
        report.table(["without an answer", "requests"], list(total.counts.errors.items()))
    report.section("Over time")
    marks = [Mark(event.name, event.at_s) for event in result.events]
    report.chart(stack(result.timeline.t_s, _panels(result), _spans(result.phases), marks))
    if result.events:
        report.table(
            ["second", "event", "what was done"],
            [[round(event.at_s, 1), event.name, event.error or event.detail] for event in result.events],
        )
    report.section("Latency")
    report.chart(
        tail({"answers": result.distribution}, result.load.limit_s, PERCENTILE_MARKS),
        "Every answer counts; nothing is rounded into buckets.",
    )
    if _differ([phase.offered_rps for phase in result.phases]):
        report.chart(
            latency_by_rate(result.phases, result.load.limit_s), "Latency against the rate offered, per phase."
        )
    if len(total.server.batches) > 1:
        report.section("Batches the server ran")
        report.chart(histogram(total.server.batches, "rows, up to", "batches"))


def _add_targets(report: Page, targets: Sequence[PhaseResult]) -> None:
    report.table(
        ["target", "offered", "offered/s", "goodput/s", "p50", "p99", "failed", "dropped", "batch rows", "versions"],
        [
            [
                t.name,
                t.counts.offered,
                f"{t.offered_rps:.1f}",
                f"{t.goodput_rps:.1f}",
                ms(t.p50_s),
                ms(t.p99_s),
                t.counts.failed,
                t.counts.dropped,
                _plain(t.server.batch_rows),
                ", ".join(f"{name}: {share:.1%}" for name, share in shares(t.counts.versions).items()) or "–",
            ]
            for t in targets
        ],
        "Each target over all measured phases. Batches are those of its model, whoever asked.",
    )


def latency_by_rate(phases: Sequence[PhaseResult], limit_s: float | None) -> str:
    """Chart: latency percentiles against offered rate."""
    known = sorted((p for p in phases if p.p99_s is not None), key=lambda p: p.offered_rps)
    return lines(
        [p.offered_rps for p in known],
        {name: [_times(getattr(p.latency, f"{name}_s"), 1e3) for p in known] for name in ("p50", "p95", "p99")},
        "offered, requests a second",
        "latency, ms",
        log_y=True,
        limit=_times(limit_s, 1e3),
        markers=True,
    )


def ms(seconds: float | None) -> str:
    """Seconds as milliseconds for people: three significant digits."""
    return "–" if seconds is None else f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds * 1e3:.0f} ms"


def replicas(phase: PhaseResult) -> str:
    """How many replicas served a phase: `1`, `1–3`, or a dash if the server did not say."""
    low, high = phase.server.replicas_min, phase.server.replicas_max
    return "–" if low is None else str(low) if low == high else f"{low}–{high}"


def _panels(result: LoadResult) -> list[Panel]:
    line, server = result.timeline, result.server
    limit_ms = _times(result.load.limit_s, 1e3)
    found = [
        Panel("requests a second", {"offered": line.offered, "answered": line.completed, "failed": line.failed}),
        Panel(
            "latency, ms",
            {"p99": [_times(v, 1e3) for v in line.p99_s], "p50": [_times(v, 1e3) for v in line.p50_s]},
            limit=limit_ms,
            log=True,
        ),
        Panel("requests open", {"open": line.in_flight}),
    ]
    if _any(server.queue_rows):
        found.append(Panel("rows queued at the server", {"rows": server.queue_rows}))
    if any(rows is not None and rows > 1 for rows in server.batch_rows):
        found.append(Panel("rows per batch", {"mean": server.batch_rows}))
    if server.replicas:
        found.append(Panel("replicas", {f"version {name}": row for name, row in server.replicas.items()}, "step"))
    if server.granted:  # else what was wanted was had as soon as it had started
        held = {f"{name} wants": row for name, row in server.wanted.items()}
        held |= {f"{name} is granted": row for name, row in server.granted.items()}
        found.append(Panel("replicas wanted, and granted while others need the rest", held, "step"))
    if line.versions:
        found.append(Panel("share per version, %", {f"version {n}": row for n, row in line.versions.items()}, "share"))
    return found


def _spans(phases: Iterable[PhaseResult]) -> list[Span]:
    return [Span(phase.name, phase.start_s, phase.start_s + phase.duration_s) for phase in phases]


def _phase_row(p: PhaseResult) -> dict[str, object]:
    return {
        "phase": p.name,
        "start_s": p.start_s,
        "duration_s": p.duration_s,
        **{name: getattr(p.counts, name) for name in ("offered", "answered", "failed", "dropped", "good")},
        **{name: getattr(p, name) for name in ("offered_rps", "achieved_rps", "goodput_rps")},
        **{f"{n}_s": getattr(p.latency, f"{n}_s") for n in ("mean", "p50", "p90", "p95", "p99", "p999", "max")},
        "service_p50_s": p.service.p50_s,
        "service_p99_s": p.service.p99_s,
        "lag_p99_s": p.lag.p99_s,
        **{name: getattr(p.server, name) for name in ("batch_rows", "replicas_min", "replicas_max", "queue_rows_max")},
    }


def _second_rows(result: LoadResult) -> tuple[list[str], list[Sequence[object]]]:
    line, server = result.timeline, result.server
    columns: dict[str, Sequence[object]] = {
        "t_s": line.t_s,
        "offered": line.offered,
        "completed": line.completed,
        "failed": line.failed,
        "p50_s": line.p50_s,
        "p99_s": line.p99_s,
        "in_flight": line.in_flight,
        "batch_rows": server.batch_rows,
        "queue_rows": server.queue_rows,
        **{f"replicas_{name}": row for name, row in server.replicas.items()},
        **{f"answers_{name}": row for name, row in line.versions.items()},
    }
    return list(columns), list(zip(*columns.values(), strict=True))


def _write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)


def add_server(report: Page, about: Mapping[str, Any]) -> None:
    """What is known of the server: its version, its settings, how the models are deployed."""
    plain = {name: value for name, value in about.items() if not isinstance(value, Mapping)}
    if plain:
        report.section("The server")
        report.pairs(plain)
    for name, fields in (about.get("models") or {}).items():
        report.text(f"{name}: " + ", ".join(f"{field} {value}" for field, value in fields.items()))
    settings = about.get("settings") or {}
    lines = [f"{section}: " + ", ".join(f"{k} {v}" for k, v in values.items()) for section, values in settings.items()]
    if lines:
        report.code("\n".join(lines))


def _versions(machine: Machine) -> list[tuple[str, str]]:
    return [
        ("Prism", machine.prism),
        ("Locust", machine.locust),
        ("Ray", machine.ray),
        ("ONNX Runtime", machine.onnxruntime),
        ("NumPy", machine.numpy),
    ]


def _keys(target: dict[str, object]) -> str:
    keys = target["keys"]
    assert isinstance(keys, dict)
    return "none" if keys["kind"] == "none" else f"{keys['count']}, {keys['kind']}"


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _differ(rates: Sequence[float]) -> bool:
    """Whether phases are so unlike that their latencies against their rates say more than chance."""
    return len(rates) > 1 and max(rates) > 1.5 * min(rates)


def _any(values: Iterable[float | None]) -> bool:
    return any(value is not None for value in values)


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"
