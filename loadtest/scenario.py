"""What a load test sends, when, and what it has to show: read from YAML, checked field by field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import yaml

from cluster.errors import InvalidRequest
from cluster.names import Target
from loadtest.arrivals import PATTERNS, Replay
from loadtest.events import Event, check_times
from loadtest.objective import Objective
from loadtest.reading import read
from loadtest.schedule import Phase

MAX_ARRIVALS = 20_000_000  # planned beforehand, some 100 bytes each


@dataclass(frozen=True, slots=True)
class Keys:
    """Which `X-Prism-Key` a request carries: none, or one of `count` keys, evenly or by Zipf's law."""

    kind: Literal["none", "uniform", "zipf"] = "none"
    count: int = 1000
    exponent: float = 1.1

    def __post_init__(self) -> None:
        if self.count < 1 or self.exponent <= 0:
            raise InvalidRequest(f"keys: expected count >= 1 and exponent > 0, got {self.count}, {self.exponent}")


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """A model and what is sent to it.

    Bodies hold `rows` rows from `sample` (an `.npz` file with one array per input, or an artifact's folder), or
    random numbers in the shape the model's metadata gives; `shapes` fills in free dimensions (row shape, without the
    rows). `variants` bodies are prepared and used in turn.
    """

    model: str = ""  # name, name:version or name@label; "" means the one named on the command line
    weight: float = 1.0
    protocol: str = "oip-http"
    encoding: Literal["json", "binary", "raw"] = "binary"
    rows: int = 1
    sample: str = ""
    shapes: dict[str, list[int]] = field(default_factory=dict)
    variants: int = 8
    keys: Keys = field(default_factory=Keys)

    def __post_init__(self) -> None:
        if self.model:
            Target.parse(self.model)
        if self.rows < 1 or self.variants < 1 or not self.weight > 0:
            raise InvalidRequest("targets: expected rows >= 1, variants >= 1 and weight > 0")


@dataclass(frozen=True, slots=True)
class GeneratorSettings:
    """The load generator's own limits. An arrival that finds `max_in_flight` requests open is dropped and counted."""

    processes: int = 1
    max_in_flight: int = 256
    connections: int = 32  # opened before the first request, so that no request pays for a handshake
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if self.processes < 1 or self.max_in_flight < 1 or self.connections < 0 or self.timeout_s <= 0:
            raise InvalidRequest("generator: expected processes, max_in_flight >= 1, connections >= 0, timeout_s > 0")


class Changes(TypedDict, total=False):
    """What may be replaced in a scenario; None leaves it. `duration_s` stretches all phases to that total, and events
    with them. `model` may be several, separated by commas, which go to the targets in turn; `sample` goes to all."""

    rate: float | None
    duration_s: float | None
    model: str | None
    sample: str | None
    seed: int | None
    processes: int | None
    objective: Objective | None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load test. `rate` is the requests per second that 1.0 means in the phases' arrival patterns.

    `loop` is `open` (arrivals do not wait for answers) or `closed` (`users` clients, each sending its next request
    when it has the answer to the last), which hides stalls and is only there to compare with tools that do so.
    """

    name: str
    rate: float
    phases: tuple[Phase, ...]
    objective: Objective
    targets: tuple[LoadTarget, ...] = (LoadTarget(),)
    events: tuple[Event, ...] = ()
    about: str = ""
    warmup_s: float = 2.0
    loop: Literal["open", "closed"] = "open"
    users: int = 8
    seed: int = 1
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("rate", 0 < self.rate < 1e6, "a number above 0"),
            ("phases", len(self.phases) > 0, "at least one"),
            ("targets", len(self.targets) > 0, "at least one"),
            ("warmup_s", self.warmup_s >= 0, "0 or more"),
            ("users", self.users >= 1, "at least 1"),
            ("seed", self.seed >= 0, "0 or more"),
        ):
            if not ok:
                raise InvalidRequest(f"{name}: expected {expected}, got {getattr(self, name)!r}")
        if self.rate * self.duration_s > MAX_ARRIVALS:
            raise InvalidRequest(
                f"rate: {self.rate:g}/s for {self.duration_s:g} s are more than {MAX_ARRIVALS} requests, "
                "which no load generator here can plan; lower the rate or the duration"
            )
        check_times(self.events, self.duration_s)

    @property
    def duration_s(self) -> float:
        """Seconds of all phases, without the warm-up."""
        return sum(phase.duration_s for phase in self.phases)

    def adjusted(self, **changes: Unpack[Changes]) -> Scenario:
        """This scenario with some values replaced.

        Raises: InvalidRequest, also for a rate where the file that is replayed has its own.
        """
        given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        if "rate" in given and any(isinstance(phase.arrivals, Replay) for phase in self.phases):
            raise InvalidRequest("rate: a replayed file has its own; set scale_rate in the scenario")
        if "duration_s" in given:
            duration_s = given.pop("duration_s")
            if not duration_s > 0:
                raise InvalidRequest(f"duration_s: expected seconds above 0, got {duration_s}")
            stretch = duration_s / self.duration_s
            given["phases"] = tuple(replace(phase, duration_s=phase.duration_s * stretch) for phase in self.phases)
            given["events"] = tuple(replace(event, at_s=event.at_s * stretch) for event in self.events)
        if "processes" in given:
            given["generator"] = replace(self.generator, processes=given.pop("processes"))
        models = [name.strip() for name in given.pop("model", "").split(",") if name.strip()]
        sample = given.pop("sample", None)
        if len(models) > len(self.targets):
            raise InvalidRequest(
                f"model: {len(models)} are given, and scenario {self.name} has {len(self.targets)} "
                f"target{'s' if len(self.targets) > 1 else ''}"
            )
        targets = self.targets
        if models:
            targets = tuple(replace(each, model=models[i % len(models)]) for i, each in enumerate(targets))
        if sample:
            targets = tuple(replace(each, sample=sample) for each in targets)
        return replace(self, **given, targets=targets)


def target_names(targets: Sequence[LoadTarget]) -> list[str]:
    """What each target is called in a report: its model, and how it is asked where that alone is not enough."""
    names = [target.model or "?" for target in targets]
    if len(set(names)) < len(names):
        names = [f"{target.model or '?'} ({target.encoding}, rows {target.rows})" for target in targets]
    return [name if names.count(name) == 1 else f"{name} #{i + 1}" for i, name in enumerate(names)]


def read_scenario(source: str, **changes: Unpack[Changes]) -> Scenario:
    """From a YAML file, or the shipped scenario of that name (`smoke`, `config/loadtest/smoke.yaml`).

    Raises: InvalidRequest, naming the file and the field.
    """
    file = find(source)
    try:
        raw = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InvalidRequest(f"scenario: {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"scenario: {file}: {' '.join(str(error).split())}") from None
    try:
        scenario = scenario_from(raw, name=file.stem, folder=file.parent)
    except InvalidRequest as error:
        raise InvalidRequest(f"{file.name}: {error.message}") from None
    return scenario.adjusted(**changes)


def shipped() -> list[str]:
    """Names of the scenarios that come with Prism."""
    return sorted(file.stem for file in _shipped_folder().glob("*.yaml"))


def find(source: str) -> Path:
    """The file that `source` means. Raises: InvalidRequest, listing the shipped names."""
    file = Path(source)
    if file.is_file():
        return file
    inside = _shipped_folder() / f"{file.stem}.yaml"
    is_shipped_name = str(file.parent) in (".", "config/loadtest") and file.suffix in ("", ".yaml")
    if is_shipped_name and inside.is_file():
        return inside
    raise InvalidRequest(f"scenario: no file {source}, and none of {', '.join(shipped())}")


def scenario_from(raw: Any, name: str, folder: Path) -> Scenario:
    """From plain values; files they name are relative to `folder`. Raises: InvalidRequest, naming the field."""
    if not isinstance(raw, Mapping):
        raise InvalidRequest("expected a mapping of fields")
    values = dict(raw)
    phases = values.pop("phases", None)
    if not isinstance(phases, list) or not phases:
        raise InvalidRequest("phases: expected a list with at least one phase")
    bounds = values.pop("objective", None)
    if not isinstance(bounds, (str, list)):
        raise InvalidRequest("objective: expected bounds such as p99<50ms, or a list of them")
    plain = read(_PlainFields, values, "scenario")
    return Scenario(
        name=name,
        rate=plain.rate,
        phases=tuple(_phase(item, f"phases[{i}]", folder) for i, item in enumerate(phases)),
        objective=Objective.parse([bounds] if isinstance(bounds, str) and "," not in bounds else bounds),
        targets=tuple(
            replace(target, sample=str(folder / target.sample)) if target.sample else target
            for target in plain.targets or (LoadTarget(),)
        ),
        events=plain.events,
        about=plain.about,
        warmup_s=plain.warmup_s,
        loop=plain.loop,
        users=plain.users,
        seed=plain.seed,
        generator=plain.generator,
    )


@dataclass(frozen=True, slots=True)
class _PlainFields:
    """The fields of a scenario file that need no parsing of their own."""

    rate: float
    targets: tuple[LoadTarget, ...] = ()
    events: tuple[Event, ...] = ()
    about: str = ""
    warmup_s: float = 2.0
    loop: Literal["open", "closed"] = "open"
    users: int = 8
    seed: int = 1
    generator: GeneratorSettings = field(default_factory=GeneratorSettings)


def _phase(raw: Any, path: str, folder: Path) -> Phase:
    if not isinstance(raw, Mapping):
        raise InvalidRequest(f"{path}: expected a mapping with pattern and duration_s")
    values = dict(raw)
    pattern = values.pop("pattern", "poisson")
    if not isinstance(pattern, str) or pattern not in PATTERNS:
        raise InvalidRequest(f"{path}.pattern: expected one of {', '.join(PATTERNS)}, got {pattern!r}")
    duration_s = values.pop("duration_s", None)
    if not isinstance(duration_s, (int, float)) or isinstance(duration_s, bool) or not duration_s > 0:
        raise InvalidRequest(f"{path}.duration_s: expected seconds above 0, got {duration_s!r}")
    name = str(values.pop("name", pattern))
    if pattern == "replay" and isinstance(values.get("file"), str):
        values["file"] = str(folder / values["file"])
    try:
        return Phase(name, float(duration_s), read(PATTERNS[pattern], values, path))
    except InvalidRequest as error:
        raise InvalidRequest(error.message if error.message.startswith(path) else f"{path}.{error.message}") from None


def _shipped_folder() -> Path:
    # Beside this package, in a checkout as in an installation; the name `config` alone could be anybody's.
    return Path(str(files("loadtest"))).parent / "config" / "loadtest"
