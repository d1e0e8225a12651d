"""Everything a load generator needs, computed before the first request: when, to what, with which key."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from cluster.errors import InvalidRequest
from loadtest.calls import Call, Fetch, calls_for
from loadtest.scenario import Scenario
from loadtest.schedule import Schedule, Window, schedule


@dataclass(frozen=True, slots=True)
class Plan:
    """Arrival i is due at `schedule.due_s[i]`, sends `calls[call[i]]`, with key `key[i]` (-1: none).

    Call c belongs to the scenario's target `target[c]`.
    """

    host: str
    calls: tuple[Call, ...]
    schedule: Schedule
    call: NDArray[np.int32]
    key: NDArray[np.int32]
    target: tuple[int, ...]
    loop: str
    users: int
    seed: int
    max_in_flight: int
    connections: int
    timeout_s: float

    def write(self, file: Path) -> None:
        plain = {
            "host": self.host,
            "calls": [asdict(call) for call in self.calls],
            "windows": [asdict(window) for window in self.schedule.windows],
            "due_s": self.schedule.due_s.tobytes(),
            "call": self.call.tobytes(),
            "key": self.key.tobytes(),
            "target": self.target,
            **{name: getattr(self, name) for name in _PLAIN},
        }
        file.write_bytes(msgspec.msgpack.encode(plain))

    @classmethod
    def read(cls, file: Path) -> Plan:
        """Raises: InvalidRequest."""
        try:
            raw: dict[str, Any] = msgspec.msgpack.decode(file.read_bytes())
            return cls(
                host=raw["host"],
                calls=msgspec.convert(raw["calls"], tuple[Call, ...]),
                schedule=Schedule(
                    np.frombuffer(raw["due_s"], dtype=np.float64),
                    msgspec.convert(raw["windows"], tuple[Window, ...]),
                ),
                call=np.frombuffer(raw["call"], dtype=np.int32),
                key=np.frombuffer(raw["key"], dtype=np.int32),
                target=tuple(raw["target"]),
                **{name: raw[name] for name in _PLAIN},
            )
        except (OSError, KeyError, ValueError, msgspec.MsgspecError) as error:
            raise InvalidRequest(f"plan: {file}: {error}") from None


_PLAIN = ("loop", "users", "seed", "max_in_flight", "connections", "timeout_s")


def plan(scenario: Scenario, host: str, fetch: Fetch) -> Plan:
    """The plan of `scenario` against `host`; the same for the same scenario, seed and model.

    Raises: InvalidRequest, ModelNotFound, OperatorError from asking the server about its models.
    """
    groups = [calls_for(target, fetch, scenario.seed + i) for i, target in enumerate(scenario.targets)]
    arrivals = schedule(scenario.phases, scenario.rate, scenario.seed, scenario.warmup_s)
    # A closed loop sends as many as it can: its choices go round and round this list.
    count = len(arrivals.due_s) if scenario.loop == "open" else 65536
    rng = np.random.default_rng(np.random.SeedSequence(scenario.seed, spawn_key=(1 << 20,)))
    weights = np.array([target.weight for target in scenario.targets])
    of = rng.choice(len(weights), count, p=weights / weights.sum())
    call = np.zeros(count, dtype=np.int32)
    key = np.full(count, -1, dtype=np.int32)
    first = 0
    for i, (target, group) in enumerate(zip(scenario.targets, groups, strict=True)):
        chosen = np.flatnonzero(of == i)
        call[chosen] = first + np.arange(len(chosen)) % len(group)
        first += len(group)
        if target.keys.kind != "none":
            ranks = np.arange(1, target.keys.count + 1, dtype=np.float64)
            share = ranks**-target.keys.exponent if target.keys.kind == "zipf" else np.ones_like(ranks)
            key[chosen] = rng.choice(target.keys.count, len(chosen), p=share / share.sum())
    generator = scenario.generator
    return Plan(
        host=host,
        calls=tuple(call for group in groups for call in group),
        schedule=arrivals,
        call=call,
        key=key,
        target=tuple(i for i, group in enumerate(groups) for _ in group),
        loop=scenario.loop,
        users=scenario.users,
        seed=scenario.seed,
        max_in_flight=generator.max_in_flight,
        connections=min(generator.connections, generator.max_in_flight),
        timeout_s=generator.timeout_s,
    )
