"""What to do so that the running applications become the wanted ones, and what to say of each version meanwhile.

Pure: the controller reads the store and Ray Serve, asks `plan`, and carries it out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cluster.documents import State, VersionStatus

RETRY_FIRST_S = 15.0
RETRY_MOST_S = 600.0
LEAVE_AFTER_S = 3.0  # gateways stop sending to a version within a second; what they hold goes before it does
SETTLED_AFTER_S = 1.0  # Serve needs a moment to say that it is working on what it was told
LOST_AFTER_S = 10.0  # an application that was run and is not seen for so long is run again
GIVE_UP_S = 5.0  # a version that was ready, has no replica and cannot start one for so long has FAILED
_START_FAILED = "failed to start"  # what Serve says of a replica whose constructor raised


# What `Applied.spec` may be besides a spec: no longer wanted and deleted soon; or, before the spec, not taken by Serve.
LEAVING, REFUSED = "(leaving)", "(refused) "
GRANT = "~"  # before the replicas a version is granted, in a spec: it runs with less than was asked for


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
    """What the controller did for an application: which spec it ran when, how often that has failed since, and since
    when it has no replica because none can be started."""

    spec: str = ""
    at_s: float = 0.0
    failures: int = 0
    retry_at_s: float = 0.0
    reason: str = ""
    barred_s: float | None = None


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
    delete: list[str] = []
    kept: dict[str, Applied] = {}
    statuses: dict[str, VersionStatus] = {}
    for name, other in seen.items():
        if name in wanted or other.status == "DELETING":
            continue
        leaving = memory.get(name, Applied())
        kept[name] = leaving = leaving if leaving.spec == LEAVING else Applied(LEAVING, now_s)
        if now_s - leaving.at_s >= LEAVE_AFTER_S:
            delete.append(name)
    for name, want in wanted.items():
        applied = memory.get(name, Applied())
        app = seen.get(name)
        if applied.spec == REFUSED + want.spec and applied.retry_at_s > now_s:
            pass  # Serve would not even take it; the time to try again has not come
        elif app is not None and app.status == "DEPLOY_FAILED" and applied.spec == want.spec:
            if applied.retry_at_s == 0.0:
                applied = after_failure(applied, reason_of(app.message), now_s)
            elif now_s >= applied.retry_at_s and not app.running:  # what still answers is not thrown away
                delete.append(name)
                applied = Applied("", now_s, applied.failures, 0.0, applied.reason)
        elif app is not None and app.status == "DELETING":
            applied = Applied("", now_s, applied.failures, 0.0, applied.reason)
        elif applied.spec != want.spec or (app is None and now_s - applied.at_s > LOST_AFTER_S):
            # Never run, changed, vanished, or due for another try.
            run.append(name)
            failures = applied.failures if applied.spec in ("", want.spec, REFUSED + want.spec) else 0
            applied = Applied(want.spec, now_s, failures, 0.0, applied.reason)
        elif app is not None and app.status == "RUNNING" and applied.failures:
            applied = Applied(want.spec, applied.at_s, barred_s=applied.barred_s)
        kept[name] = applied = replace(applied, barred_s=_barred_s(app, applied, now_s))
        statuses[name] = _status(want, app, applied, before.get(name), now_s)
    return Plan(tuple(run), tuple(delete), kept, statuses)


def refused(status: VersionStatus, reason: str) -> VersionStatus:
    """The status of a version whose change Serve did not take."""
    return replace(status, state="DEGRADED" if status.replicas else "FAILED", reason=reason)


def after_refusal(applied: Applied, reason: str, now_s: float) -> Applied:
    """What to remember of an application that Serve did not take."""
    failed = after_failure(applied, reason, now_s)
    return replace(failed, spec=REFUSED + applied.spec)


def after_failure(applied: Applied, reason: str, now_s: float) -> Applied:
    """What to remember of an application that failed: when to try again, later after every failure."""
    wait_s = min(RETRY_FIRST_S * 2**applied.failures, RETRY_MOST_S)
    return Applied(applied.spec, applied.at_s, applied.failures + 1, now_s + wait_s, reason)


def _barred_s(app: Seen | None, applied: Applied, now_s: float) -> float | None:
    if app is None or app.running or not app.target or _START_FAILED not in app.message:
        return None
    return now_s if applied.barred_s is None else applied.barred_s


def _status(
    want: Wanted, app: Seen | None, applied: Applied, before: VersionStatus | None, now_s: float
) -> VersionStatus:
    ready_once = (
        before is not None
        and before.ready_once
        and before.digest == want.digest
        and before.state not in ("REGISTERED", "DRAINING", "RETIRED")  # deployed anew, it has to prove itself anew
    )
    state: State
    reason = ""
    running = app.running if app else 0
    if app is None or app.status in ("DELETING", "NOT_STARTED"):
        state = "FAILED" if applied.failures else "LOADING"
        reason = applied.reason
    elif app.status == "DEPLOY_FAILED":
        state = "DEGRADED" if running else "FAILED"
        reason = reason_of(app.message) or applied.reason
    elif ready_once and applied.barred_s is not None and now_s - applied.barred_s >= GIVE_UP_S:
        state, reason = "FAILED", reason_of(app.message)  # Serve goes on trying
    elif app.status == "UNHEALTHY":
        state, reason = "DEGRADED", reason_of(app.message)
    elif running:
        state, ready_once = "READY", True
        if applied.spec.startswith(REFUSED):
            state, reason = "DEGRADED", applied.reason
    elif app.status == "RUNNING" and app.target == 0:
        state, ready_once = "ASLEEP", True
    elif app.status == "RUNNING" and ready_once:
        state, reason = "DEGRADED", reason_of(app.message) or "no replica is running"
    else:
        state = "FAILED" if applied.failures else "LOADING"
        reason = reason_of(app.message) or applied.reason
    settled = (
        app is not None
        and app.status == "RUNNING"
        and applied.spec == want.spec
        and now_s - applied.at_s >= SETTLED_AFTER_S
    )
    return VersionStatus(
        version=want.version,
        state=state,
        reason=reason,
        replicas=running,
        target_replicas=app.target if app else 0,
        ready_once=ready_once,
        digest=want.digest,
        spec=want.spec.partition(GRANT)[0] if settled else "",
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
