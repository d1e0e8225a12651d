"""The demo's report: one HTML file with what was converted, predicted, split and loaded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cluster.artifact import Artifact
from cluster.cli.demo.flow import Tally
from loadtest.page import KeyFigure, Page, Picture
from loadtest.plots import Panel, Span, bars, lines, stack
from loadtest.report import add_load

if TYPE_CHECKING:
    from cluster.cli.demo.network import Photograph
    from cluster.cli.demo.story import Story


def write_report(story: Story, commands: list[str], file: Path) -> Path:
    """Write the report; parts of the story that did not happen are left out."""
    page = Page("Prism demo", "A trained PyTorch classifier, converted, proved, served, split, rolled back and loaded")
    flow = Tally.of(story.answers)
    if flow.total:
        page.verdict(
            "bad" if flow.failed else "good",
            f"{flow.failed} of {flow.total} requests failed while traffic moved",
            [f"{flow.wrong} were answered with another class than version 1 gives the photograph"],
        )
    _conversions(page, story)
    _predictions(page, story)
    _traffic(page, story)
    if story.load is not None:
        page.section(
            "Load",
            "Open loop: arrivals do not wait for answers, latency counts from the due time. "
            f"Replicas of version 1, also shortly after: {story.replicas_text()}.",
        )
        add_load(page, story.load)
    if story.history:
        page.section("Audit", "Every change, newest first, as the version store keeps it.")
        page.table(
            ["revision", "operation", "by", "reason"],
            [[e["revision"], e["operation"], e["by"], e.get("reason", "")] for e in story.history],
        )
    page.section("Commands")
    page.code("\n".join(commands))
    page.write(file)
    return file


def _conversions(page: Page, story: Story) -> None:
    if not story.artifacts:
        return
    page.section("Conversions", "Each artifact was reloaded by the runtime that serves it and compared with PyTorch.")
    rows, curves, sizes = [], {}, []
    rows_axis: list[int] = []
    for version, path in story.artifacts.items():
        artifact = Artifact.read(path)
        curve = artifact.cost_curve()
        size = artifact.model_path.stat().st_size
        name = f"version {version}: {artifact.manifest.precision}"
        sizes.append(KeyFigure(name, f"{size / 1e6:.1f} MB", f"{curve.run_s(1) * 1e3:.1f} ms for one image"))
        rows_axis = list(curve.rows)
        curves[name] = [curve.run_s(n) / n * 1e3 for n in curve.rows]
        for figures in artifact.parity()["outputs"]:
            rows.append(
                [
                    name,
                    figures["name"],
                    *(_figure(figures.get(k)) for k in ("worst_abs", "worst_rel", "sqnr_db", "top1")),
                ]
            )
    page.figures(sizes)
    page.table(["artifact", "output", "worst absolute", "worst relative", "SQNR, dB", "same top class"], rows, "Parity")
    page.chart(lines(rows_axis, curves, "images per batch", "ms per image"), "What an image costs by batch size")


def _predictions(page: Page, story: Story) -> None:
    if not story.predictions:
        return
    page.section("Predictions", "Asked over HTTP with an unmodified tritonclient.")
    captions = {
        photograph.name: "; ".join(
            f"version {p['version']}: " + ", ".join(f"{name} {share:.0%}" for name, share in p["top"])
            for p in story.predictions
            if p["photograph"] == photograph.name
        )
        for photograph in story.photographs
    }
    page.pictures([Picture(_jpeg(p), "image/jpeg", f"{p.name}: {captions[p.name]}") for p in story.photographs])


def _traffic(page: Page, story: Story) -> None:
    if not story.splits:
        return
    page.section("Traffic", "Requests kept flowing while every one of these changes was made.")
    page.table(
        ["change", "intended 1 / 2", "seen 1 / 2", "requests", "failed"],
        [
            [
                seen.what,
                f"{seen.intended.get('1', 0):.0%} / {seen.intended.get('2', 0):.0%}",
                f"{seen.tally.share('1'):.1%} / {seen.tally.share('2'):.1%}",
                seen.tally.total,
                seen.tally.failed,
            ]
            for seen in story.splits
        ],
    )
    page.chart(
        bars(
            [seen.what for seen in story.splits],
            {
                "intended for version 2": [seen.intended.get("2", 0.0) for seen in story.splits],
                "seen at version 2": [seen.tally.share("2") for seen in story.splits],
            },
            percent=True,
        ),
        "Share of version 2",
    )
    _timeline(page, story)


def _timeline(page: Page, story: Story) -> None:
    first_s = min(a.sent_s for a in story.answers)
    seconds = int(max(a.sent_s for a in story.answers) - first_s) + 1
    versions = sorted({a.version for a in story.answers if a.version})
    counts = {f"version {v}": np.zeros(seconds) for v in versions}
    failed = np.zeros(seconds)
    for answer in story.answers:
        second = int(answer.sent_s - first_s)
        if answer.status == 200:
            counts[f"version {answer.version}"][second] += 1
        else:
            failed[second] += 1
    ends = [*(at_s - first_s for at_s, _ in story.marks[1:]), float(seconds)]
    spans = [Span(what, at_s - first_s, end) for (at_s, what), end in zip(story.marks, ends, strict=True)]
    page.chart(
        stack(
            list(range(seconds)),
            [
                Panel("share of answers", {name: list(n) for name, n in counts.items()}, kind="share"),
                Panel("failed requests per second", {"failed": list(failed)}),
            ],
            spans,
        ),
        "Who answered, second by second",
    )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _jpeg(photograph: Photograph) -> bytes:
    from PIL import Image

    image = Image.fromarray(photograph.pixels)
    image.thumbnail((420, 420))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80)
    return out.getvalue()
