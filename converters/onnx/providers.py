"""Which of ONNX Runtime's execution providers a model is to run on, and whether it does.

ONNX Runtime starts what it can: a provider whose libraries are missing, or that takes no node of the model, is left
out with a line in a log, and the next one computes. So what was asked for is compared with what a session has, and with
where it put the model's nodes; what is less is taken only where that was allowed.

TensorRT's provider is never told a precision: without one it computes in the types that the ONNX file has, and with one
it may compute any layer in less than was proved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import ConversionFailed, EngineFailed, InvalidRequest
from cluster.tensors import Signature
from converters.ranges import AxisRange

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"

Profile = Mapping[str, tuple[list[int], list[int], list[int]]]
"""Smallest, best and largest shape by input, for inputs with free axes."""

# What `deploy.provider` may be -> the providers to ask for, best first; what comes after stands in where it is allowed.
LADDERS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "auto": ((CUDA, CPU), (CPU,)),
    "cuda": ((CUDA, CPU), (CPU,)),
    "tensorrt": ((TENSORRT, CUDA, CPU), (CUDA, CPU), (CPU,)),
}

_UNSAYABLE = frozenset(":,")  # they divide names and shapes in the provider's options


@dataclass(frozen=True, slots=True)
class TensorRtOptions:
    """How TensorRT's provider builds engines.

    Attributes:
        profile: Smallest, best and largest shapes by input, for inputs with free axes.
        cache: Folder of the engines that were built for this model and GPU; None: they are built at every start.
        building: Whether engines, and the builder's timings, may be written to `cache`.
        workspace_bytes: The most memory that a layer may use while it computes; 0: TensorRT decides.
    """

    profile: Profile
    cache: Path | None = None
    building: bool = False
    workspace_bytes: int = 0

    def to_provider(self) -> dict[str, str]:
        """As ONNX Runtime spells them. The GPU is the first that this process sees."""
        options = {
            "device_id": "0",
            "trt_fp16_enable": "False",
            "trt_int8_enable": "False",
            "trt_engine_cache_enable": str(self.cache is not None),
            "trt_timing_cache_enable": str(self.cache is not None and self.building),
        }
        if self.cache is not None:
            options["trt_engine_cache_path"] = str(self.cache)
        if self.cache is not None and self.building:
            options["trt_timing_cache_path"] = str(self.cache)
        if self.workspace_bytes:
            options["trt_max_workspace_size"] = str(self.workspace_bytes)
        if self.profile:
            for i, which in enumerate(("min", "opt", "max")):
                options[f"trt_profile_{which}_shapes"] = ",".join(
                    f"{name}:{'x'.join(map(str, shapes[i]))}" for name, shapes in self.profile.items()
                )
        return options


def rungs(accelerator: str, provider: str, offered: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Providers to ask for, best first, in the order in which such lists are tried: more than one only for "auto".

    Args:
        accelerator: "cpu", "gpu" (less than `provider` is an error) or "auto" (the best there is).
        provider: A key of LADDERS.
        offered: What this ONNX Runtime was built with.

    Raises: EngineFailed if a GPU is asked for and the provider is not offered, InvalidRequest for what makes no sense.
    """
    if provider not in LADDERS:
        raise InvalidRequest(f"provider: expected one of {', '.join(LADDERS)}, got {provider!r}")
    if accelerator == "cpu":
        if provider != "auto":
            raise InvalidRequest(f"provider: expected auto with accelerator cpu, got {provider}")
        return ((CPU,),)
    ladder = LADDERS[provider]
    if accelerator == "auto":
        return tuple(rung for rung in ladder if rung[0] == CPU or rung[0] in offered)
    if ladder[0][0] not in offered:
        wanted = "provider: expected tensorrt" if ladder[0][0] == TENSORRT else "accelerator: expected gpu"
        raise EngineFailed(f"{wanted}, but this ONNX Runtime offers {', '.join(offered)}")
    return ladder[:1]


def shortfall(asked: Sequence[str], started: Sequence[str], placed: Mapping[str, int] | None) -> str:
    """Why a session is less than what was asked for; "" if it is not.

    Args:
        asked: Providers, best first.
        started: The session's providers.
        placed: Nodes of the model by provider; None where this ONNX Runtime does not tell.
    """
    missing = [name for name in asked if name not in started]
    if missing or list(started[: len(asked)]) != list(asked):
        return f"expected {', '.join(asked)}, but ONNX Runtime could start only {', '.join(started)}"
    if asked[0] != CPU and placed is not None and not placed.get(asked[0]):
        where = ", ".join(f"{count} on {name}" for name, count in placed.items()) or "none anywhere"
        return f"expected {asked[0]}, but it takes none of the model's nodes ({where})"
    return ""


def profile_for(signature: Signature, ranges: Sequence[AxisRange]) -> Profile:
    """The shapes that TensorRT's provider is to build engines for: any number of rows, and the ranges that were proved.

    Raises: EngineFailed for a free axis without a range, or a name that the provider's options cannot hold.
    """
    from converters.tensorrt.engine import profile_of  # with onnx, which the other providers do without

    try:
        profile = profile_of(signature.inputs, signature.max_rows, ranges)
    except ConversionFailed as error:
        raise EngineFailed(f"provider: {error.message}, when it is converted") from None
    for name in profile:
        if _UNSAYABLE & set(name):
            raise EngineFailed(f"provider: TensorRT's provider cannot be told the shapes of {name!r}, for its name")
    return profile
