"""What to do so that the running applications become the wanted ones, and what to say of each version meanwhile.

Pure: the controller reads the store and Ray Serve, asks `plan`, and carries it out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.documents import State, VersionStatus

RETRY_FIRST_S = 15.0
RETRY_MOST_S = 600.0
LOST_AFTER_S = 10.0  # an application that was run and is not seen for so long is run again


@dataclass(frozen=True, slots=True)
class Wanted:
    """An application that should run. `spec` changes whenever anything about it does."""

    model: str
    version: str
    digest: str
    spec: str


@dataclass(frozen=True, slots=True)
class Seen:
    """An application as Serve reports it. `status` is Serve's word; `running` counts replicas that can answer."""

    status: str
    running: int = 0
    target: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class Applied:
    """What the controller did for an application: which spec it ran when, and how often that has failed since."""

    spec: str = ""
    at_s: float = 0.0
    failures: int = 0
    retry_at_s: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """Applications to run and to delete now, what to remember, and the status of every wanted version."""

    run: tuple[str, ...] = ()
    delete: tuple[str, ...] = ()
    memory: dict[str, Applied] = field(default_factory=dict)
    statuses: dict[str, VersionStatus] = field(default_factory=dict)


def plan(
    wanted: Mapping[str, Wanted],
    seen: Mapping[str, Seen],
    memory: Mapping[str, Applied],
    before: Mapping[str, VersionStatus],
    now_s: float,
) -> Plan:
    """The next step for every application. All mappings are by application name.

    Args:
        wanted: What should run.
        seen: Every model application Serve knows.
        memory: `Plan.memory` of the last call.
        before: Statuses reported last; a version that was ready once stays so while its digest is the same.
        now_s: Any monotonic clock.
    """
    run: list[str] = []
    delete = [name for name, app in seen.items() if name not in wanted and app.status != "DELETING"]
    kept: dict[str, Applied] = {}
    statuses: dict[str, VersionStatus] = {}
    for name, want in wanted.items():
        applied = memory.get(name, Applied())
        app = seen.get(name)
        if app is None and applied.spec == want.spec and applied.retry_at_s > now_s:
            pass  # it could not even be run; the time to try again has not come
        elif app is not None and app.status == "DEPLOY_FAILED" and applied.spec == want.spec:
            if applied.retry_at_s == 0.0:
                applied = after_failure(applied, reason_of(app.message), now_s)
            elif now_s >= applied.retry_at_s:
                delete.append(name)
                applied = Applied("", now_s, applied.failures, 0.0, applied.reason)
        elif app is not None and app.status == "DELETING":
            applied = Applied("", now_s, applied.failures, 0.0, applied.reason)
        elif applied.spec != want.spec or (app is None and now_s - applied.at_s > LOST_AFTER_S):
            # Never run, changed, vanished, or due for another try.
            run.append(name)
            failures = applied.failures if applied.spec in ("", want.spec) else 0
            applied = Applied(want.spec, now_s, failures, 0.0, applied.reason)
        elif app is not None and app.status == "RUNNING" and applied.failures:
            applied = Applied(want.spec, applied.at_s)
        kept[name] = applied
        statuses[name] = _status(want, app, applied, before.get(name))
    return Plan(tuple(run), tuple(delete), kept, statuses)


def after_failure(applied: Applied, reason: str, now_s: float) -> Applied:
    """What to remember of an application that failed: when to try again, later after every failure."""
    wait_s = min(RETRY_FIRST_S * 2**applied.failures, RETRY_MOST_S)
    return Applied(applied.spec, applied.at_s, applied.failures + 1, now_s + wait_s, reason)


def _status(want: Wanted, app: Seen | None, applied: Applied, before: VersionStatus | None) -> VersionStatus:
    ready_once = before is not None and before.ready_once and before.digest == want.digest
    state: State
    reason = ""
    running = app.running if app else 0
    if app is None or app.status in ("DELETING", "NOT_STARTED"):
        state = "FAILED" if applied.failures else "LOADING"
        reason = applied.reason
    elif app.status == "DEPLOY_FAILED":
        state, reason = "FAILED", reason_of(app.message) or applied.reason
    elif app.status == "UNHEALTHY":
        state, reason = "DEGRADED", reason_of(app.message)
    elif running:
        state, ready_once = "READY", True
    elif app.status == "RUNNING" and app.target == 0:
        state, ready_once = "ASLEEP", True
    elif ready_once and not applied.failures:
        state, reason = "DEGRADED", reason_of(app.message) or "no replica is running"
    else:
        state = "FAILED" if applied.failures else "LOADING"
        reason = reason_of(app.message) or applied.reason
    return VersionStatus(
        version=want.version,
        state=state,
        reason=reason,
        replicas=running,
        target_replicas=app.target if app else 0,
        ready_once=ready_once,
        digest=want.digest,
    )


def at_rest(version: str, digest: str, before: VersionStatus | None, stopping: bool) -> VersionStatus:
    """The status of a version that is not to run: DRAINING while Serve still knows it, then RETIRED, or REGISTERED if
    it never was ready with this digest."""
    once = before is not None and before.ready_once and before.digest == digest
    state: State = "DRAINING" if stopping else "RETIRED" if once else "REGISTERED"
    return VersionStatus(version, state, ready_once=once, digest=digest)


# The last line of a traceback: `package.module.Name: text`.
_NAMED = re.compile(r"^(?:[\w.]+\.)?([A-Z]\w+): (?!Traceback)(.+)$", re.MULTILINE)


def reason_of(message: str) -> str:
    """One line that says why, out of Serve's message, which may hold whole tracebacks."""
    found = _NAMED.findall(message)
    if found:
        name, text = found[-1]
        return f"{name}: {text.strip()}"[:500]
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0][:500] if lines else ""
