"""Load tests: seeded open-loop arrivals, Locust users, reports."""

from loadtest.result import LoadResult, PhaseResult
from loadtest.runs import Progress, run
from loadtest.scenario import Scenario, read_scenario

__all__ = ["LoadResult", "PhaseResult", "Progress", "Scenario", "read_scenario", "run"]
