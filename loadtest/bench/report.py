"""A benchmark's result for people: a table on the terminal, a page, and a Markdown summary, all from the same JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtest.bench.result import BenchResult, Point
from loadtest.bench.summary import Row, Target, summarise, verdicts
from loadtest.page import KeyFigure, Page
from loadtest.plots import bars

COLUMNS = (
    *("server", "load", "requests/s", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms"),
    *("CPU ms/request", "of it idle", "by process", "noise", "failed"),
)
ON_TERMINAL = (0, 1, 2, 3, 5, 7, 8, 10, 11)  # what fits
IDLE_COLUMNS = ("server", "work", "ready s", "cores", "by process", "MB", "by process")
NOTES = (
    "Medians over the rounds. Load is the request format and the number of connections of a closed loop, or the rate "
    "of an open one (Poisson; latency counts from when a request was due).",
    "CPU is that of all processes of the server, Ray's own included, divided by all answers. 'Of it idle' is what "
    "these processes use when nobody asks, over the time the load took.",
    "Noise is the share of the machine's CPU that neither the server nor the generator used while measuring. The "
    "generator shares the cores, so requests per second at the top say less than CPU per request.",
    "Answers are compared with ONNX Runtime in the benchmark's own process before, during and after each load.",
)


def show(result: BenchResult, console: Console) -> None:
    """Print one table per work, then targets and failures."""
    rows = summarise(result.measurements)
    for work in result.settings.works:
        table = Table(title=f"{work}: {result.about.get(work, '')}", title_justify="left")
        for i in ON_TERMINAL:
            table.add_column(COLUMNS[i], justify="left" if i < 2 else "right")
        for cells in cells_of(rows, work):
            table.add_row(*(cells[i] for i in ON_TERMINAL))
        console.print(table)
    for text in (*target_lines(rows), *failure_lines(result)):
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def cells_of(rows: Iterable[Row], work: str) -> list[list[str]]:
    """The table of a work, as text."""
    return [
        [
            row.contestant,
            load_name(row.point),
            _short(row.rps),
            *(_short(value) for value in (row.p50_ms, row.p90_ms, row.p99_ms, row.p999_ms)),
            f"{row.cpu_ms:.4f}",
            f"{row.idle_cpu_ms:.4f}",
            ", ".join(f"{kind} {ms:.3f}" for kind, ms in _largest(row.cpu_ms_by_kind)),
            f"{row.other_share:.0%}",
            str(row.failed),
        ]
        for row in rows
        if row.work == work
    ]


def target_lines(rows: Sequence[Row]) -> list[str]:
    """One line per target that was measured."""
    return [
        f"{'met' if good else 'MISSED'}: {_target_name(target)}: {_short(value)}, "
        f"{'at least' if target.at_least else 'at most'} {_short(target.bound)}"
        for target, value, good in verdicts(rows)
    ]


def failure_lines(result: BenchResult) -> list[str]:
    """One line per contestant that was left out or failed."""
    return [
        f"{f.contestant}{f' on {f.work}' if f.work else ''}"
        f"{f', round {f.round + 1}' if f.round >= 0 else ''}: {f.reason}"
        for f in result.failures
    ]


def page(result: BenchResult) -> Page:
    """The report."""
    rows = summarise(result.measurements)
    report = Page("Side by side", "Prism and other servers on the same models, on one machine, in turns.")
    found = verdicts(rows)
    if found:
        report.figures(
            [
                KeyFigure(
                    _target_name(target),
                    _short(value),
                    f"{'at least' if target.at_least else 'at most'} {_short(target.bound)}: "
                    f"{'met' if good else 'missed'}",
                )
                for target, value, good in found
            ]
        )
    for work in result.settings.works:
        mine = [row for row in rows if row.work == work]
        if not mine:
            continue
        report.section(f"{work}: {result.about.get(work, '')}")
        report.table(COLUMNS, cells_of(rows, work))
        for chart, caption in charts(mine):
            report.chart(chart, caption)
    report.section("Without a server")
    report.table(
        ["work", "rows per call", "rows/s", "ms a row", "CPU ms a row"],
        [[p.work, p.batch_rows, f"{p.rows_per_s:.0f}", f"{p.row_ms:.4f}", f"{p.row_cpu_ms:.4f}"] for p in result.floor],
        "The model called in a loop on one thread.",
    )
    report.section("Idle")
    report.table(IDLE_COLUMNS, _idle_rows(result))
    report.section("How it was measured")
    for note in NOTES:
        report.text(note)
    report.pairs(_facts(result))
    for text in failure_lines(result):
        report.text(text)
    return report


def markdown(result: BenchResult, source: str) -> str:
    """The same as a Markdown page; `source` names the JSON it was made from."""
    rows = summarise(result.measurements)
    lines = ["# Side by side", "", f"Made from `{source}` by `python -m loadtest.bench report`.", ""]
    lines += [f"- {name}: {value}" for name, value in _facts(result).items()]
    for work in result.settings.works:
        lines += ["", f"## {work}: {result.about.get(work, '')}", "", *_markdown_table(COLUMNS, cells_of(rows, work))]
    targets = target_lines(rows)
    if targets:
        lines += ["", "## Targets", "", *(f"- {text}" for text in targets)]
    if result.floor:
        floor = [[p.work, str(p.batch_rows), f"{p.rows_per_s:.0f}", f"{p.row_cpu_ms:.4f}"] for p in result.floor]
        lines += [
            "",
            "## Without a server",
            "",
            *_markdown_table(("work", "rows per call", "rows/s", "CPU ms a row"), floor),
        ]
    lines += ["", "## Idle", "", *_markdown_table(IDLE_COLUMNS, _idle_rows(result))]
    lines += ["", "## Notes", "", *(f"- {note}" for note in NOTES)]
    lines += [f"- {text}" for text in failure_lines(result)]
    return "\n".join(lines) + "\n"


def write_files(result: BenchResult, folder: Path, name: str) -> tuple[Path, ...]:
    """Write `NAME.json`, `NAME.html` and `RESULTS.md` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    files = (folder / f"{name}.json", folder / f"{name}.html", folder / "RESULTS.md")
    result.write(files[0])
    page(result).write(files[1])
    files[2].write_text(markdown(result, files[0].name))
    return files


def charts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Requests per second, and per second of CPU, of the closed loops: one group per load, one colour per server."""
    points = [p for p in dict.fromkeys(row.point for row in rows) if not p.rate]
    servers = list(dict.fromkeys(row.contestant for row in rows))
    by_key = {(row.contestant, row.point): row for row in rows}

    def series(value: str) -> dict[str, list[float | None]]:
        found: dict[str, list[float | None]] = {}
        for server in servers:
            cells = [by_key.get((server, point)) for point in points]
            found[server] = [None if row is None else _value(row, value) for row in cells]
        return found

    groups = [load_name(point) for point in points]
    return [
        (bars(groups, series("rps"), "requests a second"), "Closed loops; the generator shares the cores."),
        (bars(groups, series("per_cpu"), "requests per second of CPU"), "All processes of the server together."),
    ]


def load_name(point: Point) -> str:
    """`raw, c64` or `raw, open 500/s`."""
    return f"{point.format}, open {point.rate:g}/s" if point.rate else f"{point.format}, c{point.connections}"


def _value(row: Row, name: str) -> float:
    value = row.rps if name == "rps" else 1e3 / max(row.cpu_ms, 1e-6)
    return float(f"{value:.3g}")


def _target_name(target: Target) -> str:
    names = {"rps": "requests/s", "cpu_ms": "CPU ms/request", "p50_ms": "p50 ms"}
    return f"{target.work} {target.format} c{target.connections}, {names[target.figure]}"


def _facts(result: BenchResult) -> dict[str, str]:
    machine = result.machine
    settings = result.settings
    return {
        "started": result.started,
        "machine": f"{machine.cpu}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB, {machine.system}",
        "load average at the end": ", ".join(f"{load:g}" for load in machine.load_average),
        "versions": ", ".join([f"Python {machine.python}", *(f"{k} {v}" for k, v in result.versions.items())]),
        "command": settings.command,
        "rounds": f"{settings.rounds} of {settings.seconds:g} s a load, contestants in turns",
        "servers": "; ".join(f"{name}: {result.about[name]}" for name in settings.contestants),
        "each server": "one model worker with one ONNX Runtime thread, the same model file and session settings",
        "generator alone": f"{result.ceiling_rps:.0f} requests/s, {result.ceiling_cpu_us:.1f} µs of CPU a request",
    }


def _idle_rows(result: BenchResult) -> list[list[str]]:
    found = {(visit.contestant, visit.work): visit for visit in result.visits}
    return [
        [
            visit.contestant,
            visit.work,
            f"{visit.ready_s:.1f}",
            f"{visit.idle_cores:.3f}",
            ", ".join(f"{kind} {cores:.3f}" for kind, cores in _largest(visit.idle_cores_by_kind)),
            f"{visit.memory_bytes / 1e6:.0f}{'' if all(m.exact for m in visit.memory.values()) else ' (rss)'}",
            ", ".join(
                f"{kind} {m.pss_bytes / 1e6:.0f} in {m.processes}"
                for kind, m in sorted(visit.memory.items(), key=lambda item: -item[1].pss_bytes)
            ),
        ]
        for visit in found.values()
    ]


def _largest(by_kind: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(((kind, value) for kind, value in by_kind.items() if value > 0), key=lambda item: -item[1])


def _markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]


def _short(value: float) -> str:
    return "–" if value != value else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
