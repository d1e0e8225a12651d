"""The same load against plain Ray Serve with the same artifact, and both results side by side.

The baseline is the benchmark's contestant of that name (`loadtest.bench`): one deployment with `@serve.batch`, in a Ray
cluster of its own on free ports, started after the load on Prism and stopped with everything that belongs to it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.artifact import Artifact
from cluster.cli.oip_client import Answer, decode
from cluster.errors import InvalidRequest, OperatorError
from cluster.names import Target
from loadtest.bench.accounting import ProcessTree, settled
from loadtest.bench.contestants import CONTESTANTS, filled
from loadtest.bench.process import ServerProcess, answers, free_port
from loadtest.calls import Call, fetch_json, post, signature_metadata
from loadtest.compare import Comparison, compare, comparison_page
from loadtest.plan import plan
from loadtest.report import add_load
from loadtest.result import LoadResult
from loadtest.runs import OnProgress, run
from loadtest.scenario import Scenario

BASELINES = ("ray-serve", "ray-serve-haproxy")
TOLERANCE = 1e-3  # of the largest value of an output
START_S = 300.0  # Prism's processes and others share the machine
QUIET_TRIES = 8  # seconds in which start-up work may die down before the load
FEW_ROWS = 16  # of a batch, where the artifact was never measured

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Against:
    """A baseline to run. `replicas` and `batch_rows` are what Prism gives the model, so that both have the same."""

    name: str
    artifact: Path
    replicas: int = 1
    batch_rows: int = 0  # 0: what the artifact's profile says pays


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Both results; `files` of the whole."""

    prism: LoadResult
    baseline: LoadResult
    comparison: Comparison
    files: dict[str, str]


def check(scenario: Scenario, name: str) -> None:
    """Raises: InvalidRequest if plain Ray Serve does not have what the scenario needs, OperatorError without it."""
    if name not in BASELINES:
        raise InvalidRequest(f"baseline: expected one of {', '.join(BASELINES)}, got {name!r}")
    models = {Target.parse(target.model).model for target in scenario.targets if target.model}
    names = {target.model for target in scenario.targets}
    for needed, what in (
        (any(target.keys.kind != "none" for target in scenario.targets), "keys"),
        (len(models) > 1, f"several models ({', '.join(sorted(models))})"),
        (len(models) == 1 and len(names) > 1, f"several versions ({', '.join(sorted(names))})"),
        (bool(scenario.events), "events"),
    ):
        if needed:
            raise InvalidRequest(f"baseline: {scenario.name} has {what}, which plain Ray Serve has not")
    if missing := CONTESTANTS[name].missing():
        raise OperatorError(f"baseline: {name} needs the package {missing}, which is not installed")


def run_side_by_side(
    scenario: Scenario,
    host: str,
    against: Against,
    out: Path,
    on_progress: OnProgress | None = None,
    say: Say = lambda _: None,
    about_server: dict[str, Any] | None = None,
) -> SideBySide:
    """Load Prism at `host`, then the baseline, with the same requests at the same times; reports go to `out`.

    `out` gets `comparison.html`, and the files of each run in a folder of its own.

    Raises: as `run`; OperatorError if the baseline does not start, or answers otherwise than Prism.
    """
    check(scenario, against.name)
    artifact = Artifact.read(against.artifact)
    if artifact.manifest.format != "onnx":
        raise InvalidRequest(
            f"baseline: {against.name} runs ONNX models, {artifact.path} is in format {artifact.manifest.format}"
        )
    calls = plan(scenario, host, fetch_json(host)).calls
    expected = [_ask(host, call, "Prism") for call in calls]
    say("loading Prism")
    prism = run(scenario, host, out / "prism", on_progress, about_server=about_server)
    say(f"starting {against.name}")
    with baseline(against, artifact, max(target.rows for target in scenario.targets)) as (url, tree):
        for call, want in zip(calls, expected, strict=True):
            check_answer(against.name, _ask(url, call, against.name), want)
        settled(tree, QUIET_TRIES, 1.0)
        say(f"loading {against.name}")
        about = {
            "name": against.name,
            "about": CONTESTANTS[against.name].about,
            "replicas": against.replicas,
            "batch_rows": _batch_rows(against, artifact),
        }
        metadata = signature_metadata(artifact.manifest.signature)
        other = run(scenario, url, out / against.name, on_progress, about_server=about, fetch=lambda path: metadata)
    found = compare(out / "prism" / "result.json", out / against.name / "result.json")
    file = out / "comparison.html"
    page = comparison_page(found)
    page.section("Who took part")
    page.pairs({"A": f"Prism {prism.machine.prism} at {prism.host}", "B": f"{against.name}: {about['about']}"})
    page.text(
        f"The same requests at the same times (seed {scenario.seed}), Prism first; the same artifact, "
        f"{against.replicas} replica(s) each. Prism stays up, idle, while the baseline is loaded."
    )
    for title, result in (("A: Prism", prism), (f"B: {against.name}", other)):
        page.section(title)
        add_load(page, result)
    page.write(file)
    return SideBySide(prism, other, found, {"report": str(file)})


@contextmanager
def baseline(against: Against, artifact: Artifact, rows: int) -> Iterator[tuple[str, ProcessTree]]:
    """The baseline's URL and processes, while it runs; everything it started has ended afterwards, whatever happened.

    Args:
        rows: Rows of one request: its batches count requests.
    """
    contestant, port = CONTESTANTS[against.name], free_port()
    values = {
        "port": str(port),
        "model_file": str(artifact.path),
        "max_batch_rows": str(max(1, _batch_rows(against, artifact) // rows)),
    }
    command = [filled(part, values) for part in contestant.command]
    with tempfile.TemporaryDirectory(prefix="prism-baseline-") as folder:
        process = ServerProcess(
            against.name,
            [*command, "--replicas", str(against.replicas)],
            Path(folder) / "log",
            START_S,
            contestant.stop_s,
        )
        process.start(lambda: answers(port, contestant.ready))
        try:
            yield f"http://127.0.0.1:{port}", process.tree
        finally:
            process.stop()


def check_answer(name: str, got: Answer, want: Answer) -> None:
    """Raises: OperatorError if `got` is not the answer `want`, up to rounding."""
    if got.outputs.keys() != want.outputs.keys():
        raise OperatorError(f"baseline: {name} answers with {list(got.outputs)}, Prism with {list(want.outputs)}")
    for output, expected in want.outputs.items():
        found = got.outputs[output]
        same = found.shape == expected.shape
        if same and expected.dtype == object:
            same = found.tolist() == expected.tolist()
        elif same and expected.size:
            one, other = found.astype(np.float64), expected.astype(np.float64)
            limit = TOLERANCE * max(1e-6, float(np.nanmax(np.abs(other))))
            same = bool(np.allclose(one, other, rtol=0.0, atol=limit, equal_nan=True))
        if not same:
            raise OperatorError(f"baseline: {name} answers otherwise than Prism: output {output!r} differs")


def _batch_rows(against: Against, artifact: Artifact) -> int:
    measured = artifact.profile().get("devices", {}).get("cpu", {}).get("best_rows", FEW_ROWS)
    return min(against.batch_rows or int(measured), artifact.manifest.signature.max_rows)


def _ask(host: str, call: Call, name: str) -> Answer:
    status, headers, body = post(host, call)
    if status != 200:
        raise OperatorError(f"{name} at {host}: HTTP {status}: {body[:200].decode(errors='replace')}")
    length = headers.get("inference-header-content-length")
    return decode(body, int(length) if length is not None else None)
