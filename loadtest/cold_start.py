"""`python -m loadtest.cold_start`: what the first request to a version that sleeps waits for, broken down.

A Prism in a temporary home serves one network with `--min 0`. Each time it has fallen asleep, one request is sent,
which wakes it and waits in the gateway until a replica answers. Beside the request's own time stands what the replica
says its start was spent on.
"""

from __future__ import annotations

import http.client
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import click
import orjson

from cluster.errors import OperatorError
from loadtest.bench.answers import UnreadableAnswer
from loadtest.bench.contestants import CONTESTANTS
from loadtest.bench.formats import request_bytes
from loadtest.bench.process import Server, ask
from loadtest.bench.work import WORKS, prepare, write_artifact
from loadtest.result import this_machine

IDLE_AFTER_S = 1.0  # without a request, until it falls asleep
ASLEEP_WITHIN_S = 90.0
POLL_S = 0.2
PATH = "/api/v1/overview"


@dataclass(frozen=True, slots=True)
class Wake:
    """One start from zero, in seconds.

    Attributes:
        request_s: From sending the request to its whole answer; the others are parts of it, one after the other.
        ordered_s: Until the replica's process began: the gateway asks for a replica, Ray Serve orders it.
        steps: What the replica's start was spent on, in order.
        listed_s: Until Ray Serve had told the gateway, of the time after the start; None if it was not seen.
        answered_s: From the end of the start to the answer, `listed_s` included.
    """

    request_s: float
    ordered_s: float
    steps: dict[str, float]
    listed_s: float | None
    answered_s: float


def wake_of(sent_s: float, answered_s: float, start: Mapping[str, Any]) -> Wake:
    """The parts of a request that was sent and answered at these Unix times, by the `start` of the overview."""
    began_s = start["ready_s"] - sum(start["steps"].values())
    listed_s = start.get("seen_after_s")
    return Wake(
        request_s=round(answered_s - sent_s, 3),
        ordered_s=round(began_s - sent_s, 3),
        steps={step: round(seconds, 3) for step, seconds in start["steps"].items()},
        listed_s=None if listed_s is None else round(listed_s, 3),
        answered_s=round(answered_s - start["ready_s"], 3),
    )


def medians(wakes: list[Wake]) -> dict[str, float]:
    """Of every part over all wakes, in order; they need not add up to that of the whole."""
    found = {"ordered": median(wake.ordered_s for wake in wakes)}
    for step in wakes[0].steps:
        found[step] = median(wake.steps.get(step, 0.0) for wake in wakes)
    found["answered"] = median(wake.answered_s for wake in wakes)
    found["the request"] = median(wake.request_s for wake in wakes)
    return {part: round(seconds, 3) for part, seconds in found.items()}


def version_seen(port: int, model: str) -> dict[str, Any]:
    """The version in the gateway's overview. Raises: OSError, HTTPException, ValueError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", PATH)
        overview = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    versions = next((each["versions"] for each in overview["models"] if each["name"] == model), None)
    if not versions:
        raise ValueError(f"{PATH}: {model} is not in it")
    return dict(versions[0])


def wait_until(what: str, is_so: Callable[[dict[str, Any]], bool], port: int, model: str, within_s: float) -> Any:
    """The version as the overview shows it once `is_so`. Raises: OperatorError if that takes too long."""
    end_s, last = time.monotonic() + within_s, ""
    while time.monotonic() < end_s:
        try:
            seen = version_seen(port, model)
        except (OSError, http.client.HTTPException, ValueError) as error:
            last = repr(error)
        else:
            if is_so(seen):
                return seen
            last = f"{seen['state']}, {seen['replicas']} replicas, {seen['connected']} connected"
        time.sleep(POLL_S)
    raise OperatorError(f"{model}: not {what} within {within_s:g} s: {last}")


def wake(port: int, model: str, request: bytes) -> Wake:
    """Send one request to the version once it sleeps. Raises: OperatorError if it does not, or is not answered."""
    asleep = wait_until("asleep", lambda v: v["state"] == "ASLEEP" and not v["connected"], port, model, ASLEEP_WITHIN_S)
    before = {start["replica"] for start in asleep["starts"]}
    sent_s = time.time()
    try:
        status, answer = ask(port, request)
    except (OSError, UnreadableAnswer) as error:
        raise OperatorError(f"{model}: the request that woke it was not answered: {error!r}") from None
    answered_s = time.time()
    if status != 200:
        raise OperatorError(f"{model}: the request that woke it got {status}: {answer[-200:]!r}")

    def new(version: dict[str, Any]) -> list[dict[str, Any]]:
        return [start for start in version["starts"] if start["replica"] not in before]

    seen = wait_until("seen to have started", lambda version: bool(new(version)), port, model, 10.0)
    return wake_of(sent_s, answered_s, new(seen)[-1])


@click.command()
@click.option("--wakes", default=5, show_default=True, type=click.IntRange(1))
@click.option("--work", "name", default="M", show_default=True, type=click.Choice(sorted(WORKS)), help="The network.")
@click.option(
    "--work-dir", type=click.Path(path_type=Path, file_okay=False), default=Path("build/cold-start"), show_default=True
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("loadtest/results"), show_default=True
)
def main(wakes: int, name: str, work_dir: Path, out: Path) -> None:
    """Wake a sleeping version some times and write what that took to cold-start.json."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # the server is stopped on the way out
    began = this_machine()
    work_dir.mkdir(parents=True, exist_ok=True)
    prepared = prepare(WORKS[name], work_dir)
    contestant = CONTESTANTS["prism"]
    sleeping = replace(contestant, command=(*contestant.command, "--idle-after", f"{IDLE_AFTER_S:g}"))
    found: list[Wake] = []
    try:
        write_artifact(prepared)
        with Server(sleeping, prepared, work_dir) as server:
            request = request_bytes("raw", server.path, server.port, prepared.inputs[0])
            for number in range(wakes):
                found.append(wake(server.port, prepared.work.model, request))
                click.echo(f"{number + 1} of {wakes}: {found[-1].request_s:.2f} s")
    except OperatorError as error:
        raise click.ClickException(error.message) from None
    whole = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", "loadtest.cold_start", *sys.argv[1:]]),
        "model": {"about": prepared.work.about, "bytes": prepared.model_file.stat().st_size},
        "machine": asdict(began),
        "load_average": {"before": began.load_average, "after": this_machine().load_average},
        "median_s": medians(found),
        "wakes": [asdict(each) for each in found],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "cold-start.json").write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2) + b"\n")
    for part, seconds in medians(found).items():
        click.echo(f"{part:12} {seconds:6.2f} s")


if __name__ == "__main__":
    main()
