"""Where each setting of a deployed version came from: an option, its artifact, what was deployed before, or nowhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cluster.documents import DeploySettings, VersionRecord

OPTION, ARTIFACT, BEFORE, DEFAULT = "option", "artifact", "as before", "default"
_COUNTED = "attempt"  # nobody's setting


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, and where it came from. `asked` is what the artifact asks for, None where it does not."""

    name: str
    value: Any
    origin: str
    asked: Any = None

    @property
    def overrules(self) -> bool:
        """Whether the artifact asks for something else."""
        return self.asked is not None and self.asked != self.value


def origins(earlier: VersionRecord | None, record: VersionRecord, overrides: Mapping[str, Any]) -> tuple[Setting, ...]:
    """Every setting of `record`, which is deployed now; `earlier` is the same version before."""
    before = earlier.deploy if earlier is not None else None
    defaults = asdict(DeploySettings())
    found = []
    for name, value in asdict(record.deploy or DeploySettings()).items():
        if name == _COUNTED:
            continue
        asked = record.serving.get(name)
        if name in overrides:
            origin = OPTION
        elif before is not None:
            origin = DEFAULT if value == defaults[name] and asked is None else BEFORE
        else:
            origin = ARTIFACT if name in record.serving else DEFAULT
        found.append(Setting(name, value, origin, asked))
    return tuple(found)


def described(settings: tuple[Setting, ...]) -> str:
    """One line for people, "" if all are defaults: `num_cpus 2 (option; the artifact asks for 1), ...`."""
    return ", ".join(_one(setting) for setting in settings if setting.origin != DEFAULT)


def _one(setting: Setting) -> str:
    origin = f"{setting.origin}; the artifact asks for {setting.asked}" if setting.overrules else setting.origin
    return f"{setting.name} {setting.value} ({origin})"


def to_json(settings: tuple[Setting, ...]) -> dict[str, Any]:
    """By name, for `--json`."""
    return {s.name: {"value": s.value, "from": s.origin, "artifact": s.asked} for s in settings}
