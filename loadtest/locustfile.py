"""Locust's entry point. `prism loadtest` runs it headless; on its own it is an ordinary locustfile:

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000 --scenario smoke --model NAME

Locust's page, `--headless`, `--processes` and `--master`/`--worker` work as usual. The scenario decides when requests
are sent, so Locust's `--users`, `--spawn-rate` and `--run-time` do not apply.
"""

from __future__ import annotations

import logging
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import locust.runners
import locust.stats
from locust import events
from locust.env import Environment

from cluster.errors import InvalidRequest, ServingError
from loadtest.calls import check_host, fetch_json
from loadtest.generator import PlanShape, PlanUser, connect, forget, give_up, prepare
from loadtest.plan import Plan, plan
from loadtest.scenario import read_scenario

log = logging.getLogger(__name__)

# Locust rounds latencies to two digits, and below 100 ms to whole milliseconds. Four digits keep its tables useful;
# Prism's own figures come from the samples and are not rounded at all.
locust.stats.bucket_response_time = lambda ms: float(f"{ms:.4g}")

# Seconds without a word from a worker until it is given up. After Locust's three a busy machine ends a run that nothing
# is wrong with: a worker that unpacks a long plan says nothing meanwhile.
locust.runners.HEARTBEAT_LIVENESS = 20


def add_options(parser: ArgumentParser, **_: Any) -> None:
    parser.add_argument("--scenario", default="smoke", help="A scenario file, or the name of a shipped one")
    parser.add_argument(
        "--model", default="", help="Model to ask: name, name:version or name@label; several with commas, in turn"
    )
    parser.add_argument(
        "--rate", type=float, default=0.0, help="Requests per second that 1.0 means (0: the scenario's)"
    )
    parser.add_argument("--sample", default="", help="Sample .npz or artifact folder for the request bodies")
    hidden: dict[str, Any] = {"include_in_web_ui": False}
    parser.add_argument("--plan", default="", help="A prepared plan, instead of a scenario", **hidden)
    parser.add_argument("--samples", default="", help="Folder for one row per request", **hidden)
    parser.add_argument("--parent", type=int, default=0, help="Process whose end ends the run", **hidden)


def on_init(environment: Environment, **_: Any) -> None:
    connect(environment, environment.parsed_options.parent)


def on_test_start(environment: Environment, **_: Any) -> None:
    options = environment.parsed_options
    try:
        prepare(environment, lambda: _plan(environment), Path(options.samples) if options.samples else None)
    except ServingError as error:
        log.error("%s", error.message)
        give_up(environment)
        environment.process_exit_code = 1


def on_test_stop(environment: Environment, **_: Any) -> None:
    forget(environment)


def _plan(environment: Environment) -> Plan:
    options = environment.parsed_options
    if options.plan:
        return Plan.read(Path(options.plan))
    if not environment.host:
        raise InvalidRequest("host: missing; give --host http://HOST:PORT")
    host = check_host(environment.host)
    scenario = read_scenario(
        options.scenario, rate=options.rate or None, model=options.model or None, sample=options.sample or None
    )
    if scenario.events:
        log.warning("the scenario's events are left out: only prism loadtest carries them out")
    return plan(scenario, host, fetch_json(host))


class ScenarioUser(PlanUser):
    """The one user class of a run."""


class ScenarioShape(PlanShape):
    """The one shape of a run."""


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(on_init)
events.test_start.add_listener(on_test_start)
events.test_stop.add_listener(on_test_stop)
