"""Which installed packages exclude each other, and why.

pip cannot say it: two distributions may own the same files, and then whichever was unpacked last wins in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from cluster.errors import OperatorError


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Two distributions of which one environment holds at most one.

    Attributes:
        since: Major version from which `second` is in the way; 0 where all are.
        remedy: What to type.
    """

    first: str
    second: str
    why: str
    remedy: str
    since: int = 0


_REINSTALL = "pip uninstall -y {0} {1}, then install the one that is wanted"

EXCLUSIONS = (
    Exclusion(
        "onnxruntime",
        "onnxruntime-gpu",
        "both own the folder onnxruntime/",
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu (or onnxruntime)",
    ),
    Exclusion("tensorflow", "tensorflow-cpu", "both own the folder tensorflow/", _REINSTALL),
    Exclusion("xgboost", "xgboost-cpu", "both own the folder xgboost/", _REINSTALL),
    Exclusion(
        "onnxruntime",
        "nvidia-modelopt",
        "ModelOpt pins other versions of onnx and onnxruntime; quantise in an environment of its own",
        "pip uninstall -y nvidia-modelopt",
    ),
    Exclusion(
        "onnxruntime-gpu",
        "tensorrt-cu13",
        "ONNX Runtime's TensorRT provider needs TensorRT 10, the extra 'tensorrt' brings 11",
        "keep the extras 'ort-tensorrt' and 'tensorrt' in environments of their own",
        since=11,
    ),
)


def installed_version(name: str) -> str | None:
    """The version of a distribution, or None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def conflict(exclusion: Exclusion, find: Callable[[str], str | None] = installed_version) -> str | None:
    """Why this environment cannot be relied on, or None where it holds at most one of the two."""
    first, second = find(exclusion.first), find(exclusion.second)
    if first is None or second is None or _major(second) < exclusion.since:
        return None
    remedy = exclusion.remedy.format(exclusion.first, exclusion.second)
    return f"{exclusion.first} {first} and {exclusion.second} {second} are both installed: {exclusion.why} ({remedy})"


def refuse_conflicts(find: Callable[[str], str | None] = installed_version) -> None:
    """Raises: OperatorError naming every pair of installed packages that exclude each other."""
    found = [text for text in (conflict(exclusion, find) for exclusion in EXCLUSIONS) if text]
    if found:
        raise OperatorError("; ".join(found))


def _major(text: str) -> int:
    first = text.partition(".")[0]
    return int(first) if first.isdecimal() else 0
