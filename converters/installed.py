"""Which installed packages exclude each other, and why.

pip cannot say it: two distributions may own the same files, and then whichever was unpacked last wins in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations

from cluster.errors import OperatorError


@dataclass(frozen=True, slots=True)
class Exclusion:
    """Two distributions of which one environment holds at most one.

    Attributes:
        since: Major version from which `second` is in the way; 0 where all are.
        remedy: What to type; {0} and {1} are the two versions.
    """

    first: str
    second: str
    why: str
    remedy: str
    since: int = 0


_REQUIREMENT = {"onnxruntime-gpu": "onnxruntime-gpu[cuda,cudnn]"}  # where the name alone is not all that is needed


def _one_of(folder: str, *names: str) -> tuple[Exclusion, ...]:
    """Distributions that own the same folder: removing one takes files of the other along, so both have to go."""
    return tuple(
        Exclusion(
            first,
            second,
            f"both own the folder {folder}",
            f"pip uninstall -y {first} {second} && pip install '{_REQUIREMENT.get(second, second)}=={{1}}', "
            f"or '{_REQUIREMENT.get(first, first)}=={{0}}' to keep that one",
        )
        for first, second in combinations(names, 2)
    )


EXCLUSIONS = (
    *_one_of("onnxruntime/", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"),
    *_one_of("tensorflow/", "tensorflow", "tensorflow-cpu"),
    *_one_of("xgboost/", "xgboost", "xgboost-cpu"),
    *_one_of("tensorrt/", "tensorrt-cu12", "tensorrt-cu13"),
    *(
        Exclusion(
            name,
            "nvidia-modelopt",
            "ModelOpt pins other versions of onnx and onnxruntime-gpu; quantise in an environment of its own",
            "pip uninstall -y nvidia-modelopt",
        )
        for name in ("onnxruntime", "onnxruntime-gpu")
    ),
)

# In the way of ONNX Runtime's TensorRT provider only: CUDA and native engines do well beside each other.
TENSORRT_PROVIDER = tuple(
    Exclusion(
        "onnxruntime-gpu",
        name,
        "ONNX Runtime's TensorRT provider needs TensorRT 10, the extra 'tensorrt' brings 11",
        "the extras 'ort-tensorrt' and 'tensorrt' need environments of their own; here, use --provider cuda",
        since=11,
    )
    for name in ("tensorrt-cu12", "tensorrt-cu13")
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
    remedy = exclusion.remedy.format(first, second)
    return f"{exclusion.first} {first} and {exclusion.second} {second} are both installed: {exclusion.why} ({remedy})"


def refuse_conflicts(
    find: Callable[[str], str | None] = installed_version, exclusions: Iterable[Exclusion] = EXCLUSIONS
) -> None:
    """Raises: OperatorError naming every pair of installed packages that exclude each other."""
    found = [text for text in (conflict(exclusion, find) for exclusion in exclusions) if text]
    if found:
        raise OperatorError("; ".join(found))


def _major(text: str) -> int:
    first = text.partition(".")[0]
    return int(first) if first.isdecimal() else 0
