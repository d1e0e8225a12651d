"""`python -m loadtest.scaling_live`: a real step in load on this machine, Prism and Ray Serve's default autoscaling.

Each server is started with one small replica and may have more. Requests come open loop, first at a quarter of what
one replica can answer, then at four times that. Noted are when another replica is ready (Prism: a gateway has connected
to it; Ray Serve: Serve calls it RUNNING), when another has answered a request of the load (Prism: its gateway counts
the replicas that have; Ray Serve: each names itself in its answers), both looked at every tenth of a second, and when
latency is back within the objective.

A row takes so long that a core is busy with 20 to 30 of them a second: what carries requests to replicas, which takes
Ray Serve some 10 ms of CPU for each, then needs little of the machine, and what is compared is scaling.
"""

from __future__ import annotations

import asyncio
import http.client
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click
import numpy as np
import orjson

from cluster.errors import OperatorError
from loadtest.arrivals import Step, Times
from loadtest.bench.answers import AnswerReader, UnreadableAnswer
from loadtest.bench.contestants import CONTESTANTS, Contestant
from loadtest.bench.formats import request_bytes
from loadtest.bench.process import Server
from loadtest.bench.servers.ray_serve import REPLICA_HEADER, RUNNING
from loadtest.bench.work import INPUT, OUTPUT, Graph, Prepared, Work, open_session, prepare, write_artifact
from loadtest.result import this_machine

if TYPE_CHECKING:
    import onnx

SERVERS = ("prism", "ray-serve")
MOST = 3  # replicas
BATCH_ROWS = 4
QUARTER = 0.25  # of one replica's rate, before the step
WITHIN_S = 5.0  # latency counts as back when it stays within the objective for so long
POLL_S = 0.1
ANSWER_S = 60.0
REPLICAS, ANSWERED = "prism_replicas", "prism_replicas_answered"
_REPLICA = re.compile(rf"^{REPLICA_HEADER}: *(\S+)".encode(), re.IGNORECASE | re.MULTILINE)

Count: TypeAlias = tuple[float, int, int]  # when, replicas that are ready, replicas that have answered


def slow_network(draw: np.random.Generator, side: int = 48, channels: int = 48) -> onnx.ModelProto:
    """64 values, spread over `side` x `side` pixels with `channels` and convolved; a row takes as long in any batch."""
    graph = Graph(draw)
    spread = graph.add("Gemm", INPUT, graph.weight(side**2, 64), graph.weight(side**2, gain=0.1), transB=1)
    value = graph.add("Reshape", spread, graph.constant(np.array([-1, 1, side, side])))
    before = 1
    for _ in range(6):
        weights, bias = graph.weight(channels, before, 3, 3), graph.weight(channels, gain=0.05)
        value = graph.add("Conv", value, weights, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        value = graph.add("Relu", value)
        before = channels
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", value))
    graph.add("Gemm", pooled, graph.weight(10, channels), graph.weight(10, gain=0.1), output=OUTPUT, transB=1)
    return graph.model((64,), (10,))


def _work(name: str, build: Callable[[np.random.Generator], onnx.ModelProto]) -> Work:
    return Work(name, "convolutions on 64 values", (64,), BATCH_ROWS, (1,), ("raw",), build, False)


# On x86-64 cores of 2026, alone: 4 to 5 ms a row, and 35 to 45.
SLOW = _work("S", slow_network)
SLOWER = _work("L", partial(slow_network, side=72, channels=96))


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """One server's run. Times are seconds after the step; None: not within the run.

    Attributes:
        ready_s: Until another replica was ready.
        answered_s: Until another replica had answered a request.
        back_s: Until latency was within the objective and stayed there for some seconds.
        outside: Seconds outside the objective: more than 1 % of the requests due in it were late.
        replicas: (seconds after the step, replicas that were ready, that had answered), whenever that changed.
        p99_before_s: Before the step.
    """

    server: str
    ready_s: float | None
    answered_s: float | None
    back_s: float | None
    outside: int
    requests: int
    failed: int
    p99_before_s: float
    p99_s: float
    replicas: tuple[Count, ...]


async def send(
    port: int, requests: list[bytes], due_s: Times, answered_by: set[str] | None = None, connections: int = 256
) -> Times:
    """Seconds from when each request was due to its answer, inf for those without a 200.

    `answered_by` gets the names of the replicas that name themselves in their answers, each with its first.
    """
    latency_s = np.full(len(due_s), np.inf)
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    room = asyncio.Semaphore(connections)
    begun_s = time.perf_counter()

    async def one(number: int) -> None:
        async with room:
            try:
                while idle and idle[-1][0].at_eof():  # a server may close what was idle for long
                    idle.pop()[1].close()
                pair = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
                pair[1].write(requests[number % len(requests)])
                answer = AnswerReader()
                answer.keep = True
                while not (status := answer.feed(await asyncio.wait_for(pair[0].read(1 << 16), ANSWER_S))):
                    if pair[0].at_eof():
                        return
            except (OSError, TimeoutError, UnreadableAnswer):
                return
            if status == 200:
                latency_s[number] = time.perf_counter() - begun_s - due_s[number]
                if answered_by is not None and (named := _REPLICA.search(answer.head)):
                    answered_by.add(named[1].decode())
            if not answer.closes:
                idle.append(pair)
            else:
                pair[1].close()

    under_way = set()
    for number, at_s in enumerate(due_s):
        await asyncio.sleep(max(0.0, at_s - (time.perf_counter() - begun_s)))
        task = asyncio.ensure_future(one(number))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    await asyncio.gather(*under_way)
    for _, writer in idle:
        writer.close()
    return latency_s


class Watch:
    """Notes when the numbers of replicas change, in a thread of its own."""

    def __init__(self, count: Callable[[], tuple[int, int] | None]) -> None:
        self.seen: list[Count] = []  # times are Unix times
        self._count = count
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(POLL_S):
            count = self._count()
            if count is not None and (not self.seen or self.seen[-1][1:] != count):
                self.seen.append((time.time(), *count))


def prism_replicas(port: int) -> tuple[int, int] | None:
    """Replicas that the gateway has connected to, and how many of them have answered it; None if it does not say."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    ready, answered = (
        re.findall(rf"^{name}\{{[^}}]*\}} ([0-9.]+)$", text, re.MULTILINE) for name in (REPLICAS, ANSWERED)
    )
    return (int(max(map(float, ready))), int(max(map(float, answered)))) if ready and answered else None


def ray_replicas(log: Path, answered_by: Collection[str]) -> tuple[int, int] | None:
    """Replicas that Ray Serve last called RUNNING, as its server printed it, and how many have answered."""
    found = re.findall(rf"^{RUNNING} (\d+)", log.read_text(errors="replace"), re.MULTILINE)
    return (int(found[-1]), len(answered_by)) if found else None


def autoscaled(contestant: Contestant) -> Contestant:
    """The contestant with up to `MOST` replicas instead of one."""
    return replace(contestant, command=(*contestant.command, "--autoscale", str(MOST)))


def judge(name: str, due_s: Times, latency_s: Times, step_s: float, limit_s: float, seen: list[Count]) -> LiveFigures:
    """The figures of one run; `seen` in seconds of the run."""
    seconds = int(due_s[-1]) + 1
    late = np.bincount(due_s.astype(int), weights=latency_s > limit_s, minlength=seconds)
    count = np.bincount(due_s.astype(int), minlength=seconds)
    outside = [s for s in range(seconds) if count[s] and late[s] / count[s] > 0.01]
    after = [s for s in outside if s >= int(step_s)]
    back_s = after[-1] + 1 - step_s if after else 0.0
    ready_s, answered_s = (_grown(seen, which, step_s) for which in (1, 2))
    before = np.sort(latency_s[due_s < step_s])
    ordered = np.sort(latency_s)
    return LiveFigures(
        server=name,
        ready_s=ready_s,
        answered_s=answered_s,
        back_s=round(back_s, 1) if back_s <= seconds - step_s - WITHIN_S else None,
        outside=len(after),
        requests=len(due_s),
        failed=int(np.isinf(latency_s).sum()),
        p99_before_s=round(float(before[int(len(before) * 0.99)]), 4),
        p99_s=round(float(ordered[int(len(ordered) * 0.99)]), 4),
        replicas=tuple((round(at_s - step_s, 2), ready, answered) for at_s, ready, answered in seen),
    )


def _grown(seen: Sequence[Count], which: int, step_s: float) -> float | None:
    """Seconds from the step until that count was above what it was at the step; None: never."""
    before = max((count[which] for count in seen if count[0] < step_s), default=1)
    return next((round(count[0] - step_s, 2) for count in seen if count[0] >= step_s and count[which] > before), None)


def run(name: str, prepared: Prepared, folder: Path, due_s: Times, step_s: float, limit_s: float) -> LiveFigures:
    """Start a server, send the load, stop it. Raises: OperatorError."""
    log = folder / f"{name}-{prepared.work.name}.log"
    with Server(autoscaled(CONTESTANTS[name]), prepared, folder) as server:
        requests = [request_bytes("raw", server.path, server.port, row) for row in prepared.inputs]
        named: set[str] = set()
        with Watch(lambda: prism_replicas(server.port) if name == "prism" else ray_replicas(log, named)) as watch:
            begun_s = time.time()
            latency_s = asyncio.run(send(server.port, requests, due_s, named))
        seen = [(at_s - begun_s, ready, answered) for at_s, ready, answered in watch.seen]
    return judge(name, due_s, latency_s, step_s, limit_s, seen)


def row_seconds(prepared: Prepared) -> float:
    """What one row takes here, now: the median of some runs in this process."""
    session = open_session(prepared.model_file)
    taken = []
    for _ in range(20):
        begun_s = time.perf_counter()
        session.run([OUTPUT], {INPUT: prepared.inputs[:1]})
        taken.append(time.perf_counter() - begun_s)
    return float(np.median(taken))


@click.command()
@click.option("--before", default=20.0, show_default=True, help="Seconds before the step.")
@click.option("--after", default=90.0, show_default=True, help="Seconds after it.")
@click.option("--servers", default=",".join(SERVERS), show_default=True, help="In this order.")
@click.option("--objective-ms", default=500.0, show_default=True)
@click.option("--rate", type=float, help="Requests per second before the step.  [default: by one replica's speed]")
@click.option(
    "--work-dir", type=click.Path(path_type=Path, file_okay=False), default=Path("build/scaling"), show_default=True
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("loadtest/results"), show_default=True
)
def main(
    before: float, after: float, servers: str, objective_ms: float, rate: float | None, work_dir: Path, out: Path
) -> None:
    """A step to four times the load: how soon another replica answers, and how soon latency is back."""
    names = servers.split(",")
    if unknown := [name for name in names if name not in SERVERS]:
        raise click.BadParameter(f"expected some of {', '.join(SERVERS)}, got {unknown[0]!r}", param_hint="--servers")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # servers are stopped on the way out
    began = this_machine()
    work_dir.mkdir(parents=True, exist_ok=True)
    prepared = prepare(SLOWER, work_dir)
    write_artifact(prepared)
    row_s = row_seconds(prepared)
    rate = rate or QUARTER / row_s
    low = Step((1.0,)).due(rate, before, np.random.default_rng(1))
    high = Step((4.0,)).due(rate, after, np.random.default_rng(2))
    due_s = np.concatenate([low, before + high])
    found = []
    for name in names:
        click.echo(f"{name}: {rate:.1f} requests a second for {before:g} s, then {4 * rate:.1f} for {after:g} s")
        try:
            figures = run(name, prepared, work_dir, due_s, before, objective_ms / 1e3)
        except OperatorError as error:
            raise click.ClickException(error.message) from None
        found.append(figures)
        click.echo(
            f"{name}: another replica ready after {_seconds(figures.ready_s)} and answering after "
            f"{_seconds(figures.answered_s)}, within the objective after {_seconds(figures.back_s)}, "
            f"{figures.outside} s outside it, {figures.failed} failed"
        )
    whole = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", "loadtest.scaling_live", *sys.argv[1:]]),
        "row_ms": round(row_s * 1e3, 2),
        "rates": [round(rate, 2), round(4 * rate, 2)],
        "seconds": [before, after],
        "objective_ms": objective_ms,
        "machine": asdict(began),
        "load_average": {"before": began.load_average, "after": this_machine().load_average},
        "servers": [asdict(figures) for figures in found],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling-live.json").write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2) + b"\n")


def _seconds(value: float | None) -> str:
    return "more than the run" if value is None else f"{value:.1f} s"


if __name__ == "__main__":
    main()
