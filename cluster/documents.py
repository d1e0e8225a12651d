"""The desired state of one model, as the version store keeps it: one immutable document per revision.

The controller makes the cluster match it, gateways route by it, operators change it through `cluster.operations`.
What the cluster reports back (`VersionStatus`) is kept beside it and never inside it, so that a report can not
collide with an operator's change.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

import msgspec

from cluster.costs import CostCurve
from cluster.errors import Conflict, InvalidRequest, ModelNotFound
from cluster.names import Target, check_label, check_model, check_version
from cluster.selectors import check_selector
from cluster.splits import TrafficSplit
from cluster.tensors import Signature

SCHEMA_VERSION = 1

State = Literal["REGISTERED", "LOADING", "READY", "DEGRADED", "ASLEEP", "DRAINING", "RETIRED", "FAILED"]


@dataclass(frozen=True, slots=True)
class DeploySettings:
    """How a version is to be served. Replicas autoscale between `min_replicas` and `max_replicas`.

    `num_cpus`, `num_gpus`, `memory_bytes` and `on` are what one replica needs of a node; what no node has is waited for
    (`cluster.policy.placement`). `accelerator` "auto" takes a GPU where the cluster has one.
    """

    min_replicas: int = 1
    max_replicas: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0  # a share up to 1, or whole GPUs; 0 with accelerator "gpu": one
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    provider: Literal["auto", "cuda", "tensorrt"] = "auto"  # how ONNX Runtime uses a GPU; not "auto": takes a GPU
    memory_bytes: int | None = None  # None: by the artifact's profile; 0: none is reserved
    on: dict[str, str] = field(default_factory=dict)  # node label -> value, "!value", "in(a,b)" or "!in(a,b)"
    cpu_fallback: bool = False  # a replica that was given a GPU may compute on the CPU if its runtime cannot use one
    max_batch_rows: int = 0  # 0: what the artifact's profile says pays
    max_wait_s: float = 0.0
    max_queue_rows: int = 1024  # per replica
    default_deadline_s: float = 30.0
    target_utilisation: float = 0.7
    objective_s: float = 0.5  # a row should be answered within this time: what waits for longer asks for replicas
    weight: float = 1.0  # its part of what the cluster has, next to versions of the same priority that want more
    priority: int = 0  # larger goes first where the cluster has too little
    down_after_s: float = 60.0  # demand must have stayed lower for so long before a replica goes
    idle_after_s: float = 60.0  # with min_replicas 0: the last replica goes after so long without a request
    attempt: int = 0  # counts deploys of a version that had FAILED: another number is another try

    def __post_init__(self) -> None:
        for name, ok, expected in (
            ("min_replicas", 0 <= self.min_replicas <= self.max_replicas, "0 to max_replicas"),
            ("max_replicas", 1 <= self.max_replicas <= 1000, "1 to 1000"),
            ("num_cpus", 0 <= self.num_cpus <= 1024, "0 to 1024"),
            ("num_gpus", _whole_or_share(self.num_gpus), "a share up to 1, or a whole number up to 64"),
            ("accelerator", self.accelerator in ("auto", "cpu", "gpu"), "auto, cpu or gpu"),
            ("provider", self.provider in ("auto", "cuda", "tensorrt"), "auto, cuda or tensorrt"),
            ("memory_bytes", self.memory_bytes is None or 0 <= self.memory_bytes <= 1 << 50, "0 bytes to 1 PiB"),
            ("max_batch_rows", 0 <= self.max_batch_rows <= 65536, "0 to 65536"),
            ("max_wait_s", 0 <= self.max_wait_s <= 10, "0 to 10 seconds"),
            ("max_queue_rows", 1 <= self.max_queue_rows <= 10_000_000, "1 to 10,000,000"),
            ("default_deadline_s", 0 < self.default_deadline_s <= 3600, "above 0, at most 3600 seconds"),
            ("down_after_s", 0 <= self.down_after_s <= 86400, "0 to 86400 seconds"),
            ("idle_after_s", 0 <= self.idle_after_s <= 86400, "0 to 86400 seconds"),
            ("attempt", self.attempt >= 0, "0 or more"),
            ("objective_s", 0.001 <= self.objective_s <= 3600, "0.001 to 3600 seconds"),
            ("weight", 0.001 <= self.weight <= 1000, "0.001 to 1000"),
            ("priority", -1000 <= self.priority <= 1000, "-1000 to 1000"),
            ("target_utilisation", 0.05 <= self.target_utilisation <= 1, "0.05 to 1"),
        ):
            if not ok:
                raise InvalidRequest(f"deploy.{name}: expected {expected}, got {getattr(self, name)}")
        if self.num_gpus and self.accelerator == "cpu":
            raise InvalidRequest(f"deploy.num_gpus: expected 0 with accelerator cpu, got {self.num_gpus:g}")
        if self.provider != "auto" and self.accelerator == "cpu":
            raise InvalidRequest(f"deploy.provider: expected auto with accelerator cpu, got {self.provider}")
        for label, value in self.on.items():
            check_selector(label, value)
        if self.max_batch_rows > self.max_queue_rows:
            raise InvalidRequest(
                f"deploy.max_batch_rows: a batch of {self.max_batch_rows} rows can never fill "
                f"with max_queue_rows={self.max_queue_rows}"
            )


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One published version: which artifact it is and, if `deploy` is set, that and how it is to be served.

    `uri` is where the artifact lies (a path or any fsspec URL), `digest` its identity. Signature, costs, memory and
    class labels are copied here so that a gateway needs no artifact files; so are the settings that the artifact asks
    to be served with (`serving`, fields of DeploySettings), which a first `deploy` starts from.
    """

    version: str
    uri: str
    digest: str
    signature: Signature
    format: str
    precision: str
    size_bytes: int
    created_s: float
    by: str = ""
    costs: CostCurve = field(default_factory=CostCurve)
    memory_bytes: int = 0  # what loading it and its largest batch took when it was profiled; 0: not measured
    class_labels: tuple[str, ...] = ()
    serving: dict[str, Any] = field(default_factory=dict)
    deploy: DeploySettings | None = None

    def __post_init__(self) -> None:
        check_version(self.version)


@dataclass(frozen=True, slots=True)
class ModelDocument:
    """Everything desired of one model. `revision` and `epoch` belong to the store: 0 and "" until it was written."""

    name: str
    versions: dict[str, VersionRecord] = field(default_factory=dict)
    split: TrafficSplit | None = None  # None: no version takes traffic yet
    labels: dict[str, str] = field(default_factory=dict)  # label -> version
    next_version: int = 1
    revision: int = 0
    epoch: str = ""
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        check_model(self.name)
        for label, version in self.labels.items():
            check_label(label)
            if version not in self.versions:
                raise Conflict(f"label {label!r} points to version {version}, which {self.name} does not have")
        for arm in self.split.arms if self.split else ():
            record = self.versions.get(arm.version)
            if record is None:
                raise ModelNotFound(f"split: {self.name} has no version {arm.version}")
            if record.deploy is None and arm.share_bp:
                raise Conflict(f"split: {self.name}:{arm.version} is not deployed, so it can take no traffic")

    def record(self, version: str) -> VersionRecord:
        """Raises: ModelNotFound, naming the versions there are."""
        try:
            return self.versions[version]
        except KeyError:
            have = ", ".join(sorted(self.versions, key=int)) or "none"
            raise ModelNotFound(f"{self.name} has no version {version} (there are: {have})") from None

    def resolve(self, target: Target, key: str | None = None) -> str:
        """The version that answers `target`: its version, its label's, or the split's pick. Raises: ModelNotFound."""
        if target.version is not None:
            return self.record(target.version).version
        if target.label is not None:
            if target.label not in self.labels:
                have = ", ".join(sorted(self.labels)) or "none"
                raise ModelNotFound(f"{self.name} has no label {target.label!r} (there are: {have})")
            return self.labels[target.label]
        if self.split is None:
            raise ModelNotFound(f"{self.name}: no version takes traffic yet (prism split {self.name} VERSION=100)")
        return self.split.pick(key)

    def with_record(self, record: VersionRecord) -> ModelDocument:
        return replace(self, versions={**self.versions, record.version: record})


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """What the controller last saw of one version.

    `ready_once`: a replica of this digest was ready since the version was deployed. `spec`: the `spec_of` that all
    its replicas run, "" while a change is under way. Of `target_replicas`, `replicas` answer and `pending` wait for a
    node that has what they need; the others are starting. `accelerator` is what they are placed for: "cpu" or "gpu".
    `scaling` is the last change of their number and why. `wants` is what autoscaling asked for last (0: not known),
    `granted` the most it may have while others need the rest (0: nothing holds it).
    """

    version: str
    state: State
    reason: str = ""
    replicas: int = 0
    target_replicas: int = 0
    ready_once: bool = False
    digest: str = ""
    spec: str = ""
    at_s: float = 0.0
    pending: int = 0
    accelerator: str = ""
    scaling: str = ""
    wants: int = 0
    granted: int = 0


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One committed change: who did what when, and the document it led to."""

    revision: int
    operation: str
    by: str
    at_s: float
    reason: str
    document: ModelDocument


def _whole_or_share(gpus: float) -> bool:
    """Ray gives out GPUs whole, or shares of a single one."""
    return 0 <= gpus <= 64 and (gpus <= 1 or gpus == int(gpus))


def spec_of(record: VersionRecord) -> str:
    """A short hash of everything that says how the version is served: it changes whenever something of that does."""
    return hashlib.sha256(msgspec.json.encode(asdict(record), order="sorted")).hexdigest()[:16]


def encode(value: ModelDocument | VersionStatus) -> bytes:
    """Canonical JSON."""
    return msgspec.json.encode(asdict(value), order="sorted")


def decode_document(raw: bytes | str) -> ModelDocument:
    """Raises: InvalidRequest if it was written by another schema version or is not a document."""
    try:
        written = msgspec.json.decode(raw, type=_Schema).schema_version
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"ModelDocument: {error}") from None
    if written != SCHEMA_VERSION:
        raise InvalidRequest(
            f"ModelDocument.schema_version: this Prism reads {SCHEMA_VERSION}, got {written}; "
            "use the Prism that wrote it, or a later one"
        )
    return _decode(raw, ModelDocument)


def decode_status(raw: bytes | str) -> VersionStatus:
    return _decode(raw, VersionStatus)


@dataclass(frozen=True, slots=True)
class _Schema:
    schema_version: int


_T = TypeVar("_T")


def _decode(raw: bytes | str, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"{kind.__name__}: {error}") from None
