"""Exported programs compiled for this machine: PyTorch's ahead-of-time compiler and the C++ compiler it needs.

The compiler runs in a process of its own, which keeps its memory and its mistakes out of the one that serves. What it
makes is kept where the caller says, or for a day in a folder of this user's: loading it takes moments, making it takes
tens of seconds. One compiled model is right for all sizes that its program was exported for; nothing is compiled per
number of rows. It does not check sizes itself, so `Sizes` does.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from cluster.artifact import sha256_of
from cluster.derived import DerivedFiles
from cluster.errors import ConversionFailed, EngineFailed, ServingError
from converters.isolated import lasting, run_task
from converters.onnx.failures import brief
from converters.proof.profile import cpu_model
from converters.torch.runtime import Call

PACKAGE = "compiled.pt2"
KEPT_S = 86400.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes that compiled code is right for.

    Attributes:
        fixed: Input, axis and the size it must have.
        free: Axes that share a size, each as input and axis, with the least and the most.
    """

    fixed: tuple[tuple[int, int, int], ...]
    free: tuple[tuple[tuple[tuple[int, int], ...], int, int | None], ...]

    @classmethod
    def of(cls, program: Any) -> Sizes:
        """Raises: EngineFailed if sizes depend on each other in ways that are not checked here."""
        values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
        fixed: list[tuple[int, int, int]] = []
        axes: dict[Any, list[tuple[int, int]]] = {}
        for i, name in enumerate(program.graph_signature.user_inputs):
            for axis, size in enumerate(values[name].shape):
                if isinstance(size, int):
                    fixed.append((i, axis, size))
                elif size.node.expr.is_Symbol:
                    axes.setdefault(size.node.expr, []).append((i, axis))
                else:
                    raise EngineFailed(f"it cannot be compiled: axis {axis} of {name} is {size} long")
        free = tuple((tuple(found), *_bounds(program.range_constraints.get(symbol))) for symbol, found in axes.items())
        return cls(tuple(fixed), free)

    def admit(self, shapes: Sequence[Sequence[int]]) -> bool:
        """Whether compiled code may be called with such inputs."""
        if any(shapes[i][axis] != size for i, axis, size in self.fixed):
            return False
        for axes, least, most in self.free:
            size = shapes[axes[0][0]][axes[0][1]]
            if size < least or (most is not None and size > most) or any(shapes[i][a] != size for i, a in axes[1:]):
                return False
        return True


def _bounds(known: Any) -> tuple[int, int | None]:
    # Exported with more than one row, a program counts from 2 and is right for 1.
    if known is None:
        return 1, None
    least = int(known.lower) if known.lower.is_Integer else 1
    return 1 if least <= 2 else least, int(known.upper) if known.upper.is_Integer else None


def compiled_call(
    model: Path, program: Any, digest: str, threads: int, device: torch.device, derived: DerivedFiles | None
) -> Call:
    """The program as compiled code: tensors to flat outputs, or None for sizes that it is not for.

    Args:
        digest: Under which `derived` keeps what is made here: the artifact's.
        derived: Where to keep it; None: for a day, in a folder of this user's.

    Raises: EngineFailed in one line if it cannot be compiled or loaded.
    """
    sizes = Sizes.of(program)
    signature = program.graph_signature
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        raise EngineFailed("it cannot be compiled: it changes its own buffers or inputs")
    loader = _loader(model, digest, threads, device, derived)

    def call(tensors: Sequence[torch.Tensor]) -> Any:
        return loader.run(list(tensors)) if sizes.admit([tensor.shape for tensor in tensors]) else None

    return call


def compile_ahead(model: Path, threads: int, device: torch.device) -> float:
    """Compile a program so that opening it here finds it done; seconds it took, 0.0 if it was done before.

    Raises: ConversionFailed if it cannot be compiled.
    """
    store = own_store()
    begun_s = time.monotonic()
    with store.obtain(sha256_of(model), key_of(threads, device), lambda folder: _make(model, folder, threads, device)):
        return time.monotonic() - begun_s if store.spent_s else 0.0


def key_of(threads: int, device: torch.device) -> Mapping[str, str]:
    """What compiled code fits."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        on = f"{torch.cuda.get_device_name(device)} {major}.{minor}"
    else:
        on = f"{cpu_model()} {_cpu_flags()}"
    return {"what": "aot-inductor", "torch": str(torch.__version__), "on": on, "threads": str(threads)}


def _cpu_flags(info: Path = Path("/proc/cpuinfo")) -> str:
    """A hash of what this processor can do: code is made for exactly that."""
    lines = info.read_text().splitlines() if info.is_file() else []
    found = next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
    return sha256(" ".join(sorted(found.split())).encode()).hexdigest()[:16]


def own_store() -> DerivedFiles:
    """A folder of this user's, with what is older than a day removed.

    Raises: EngineFailed if somebody else could write to it: compiled code is loaded from there.
    """
    root = own_folder(lasting() / f"prism-compiled-{os.getuid()}")
    for old in root.glob("derived/*"):
        if time.time() - old.stat().st_mtime > KEPT_S:
            shutil.rmtree(old, ignore_errors=True)
    return DerivedFiles(str(root), root)


def own_folder(root: Path) -> Path:
    """`root`, there and nobody else's. Raises: EngineFailed."""
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
    except OSError as error:
        raise EngineFailed(f"no folder for compiled code: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise EngineFailed(f"{root}: expected a folder that only this user can reach, as compiled code is kept there")
    return root


def package(request: Mapping[str, Any]) -> dict[str, Any]:
    """Compile a program, in a process made for it: the task "compile" of `converters.worker`."""
    from converters.torch.pt2 import load_program

    # The compiler's own caches hold pickles: never ones that others could write to.
    os.environ.update(dict.fromkeys(("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"), request["scratch"]))
    device = torch.device(request["device"])
    torch.set_num_threads(request["threads"])
    program = load_program(Path(request["model"]), False, advice="")
    if device.type != "cpu":
        program = on_device(program, device)
    program.example_inputs = _examples(program, device)
    try:
        # One process compiles; the number of threads is part of the code; headers are compiled once only.
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=request["package"],
            inductor_configs={
                "compile_threads": 1,
                "cpp.threads": request["threads"],
                "cpp_cache_precompile_headers": False,
            },
        )
    except Exception as error:
        raise ConversionFailed(f"{type(error).__name__}: {brief(error)}") from None
    return {}


def _examples(program: Any, device: torch.device) -> Any:
    """Arguments of the sizes it was exported with, which an artifact's program does not keep: they are users' data."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    made = []
    for name in program.graph_signature.user_inputs:
        sizes = [size if isinstance(size, int) else size.node.hint or 2 for size in values[name].shape]
        made.append(torch.zeros(sizes, dtype=values[name].dtype, device=device))
    return pytree.tree_unflatten(made, program.call_spec.in_spec)


def on_device(program: Any, device: torch.device) -> Any:
    """The program with its weights, and what it makes itself, on `device`."""
    from torch.export.passes import move_to_device_pass

    return move_to_device_pass(program, str(device))


def _loader(model: Path, digest: str, threads: int, device: torch.device, derived: DerivedFiles | None) -> Any:
    key = key_of(threads, device)
    try:
        store, name = (own_store(), sha256_of(model)) if derived is None else (derived, digest)
        with store.obtain(name, key, lambda folder: _make(model, folder, threads, device)) as folder:
            # The loader itself: the Python around it imports the compiler, which takes as long as torch.
            return torch._C._aoti.AOTIModelPackageLoader(
                str(folder / PACKAGE), "model", False, 1, -1 if device.index is None else device.index
            )
    except ServingError as error:
        raise EngineFailed(error.message) from None
    except Exception as error:
        raise EngineFailed(f"PyTorch cannot load the compiled model: {brief(error)}") from None


def _make(model: Path, folder: Path, threads: int, device: torch.device) -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise ConversionFailed(f"PyTorch cannot compile the model: no C++ compiler ({compiler}) is installed")
    request = {
        "task": "compile",
        "model": str(model),
        "package": str(folder / PACKAGE),
        "threads": threads,
        "device": str(device),
    }
    with tempfile.TemporaryDirectory(prefix="prism-inductor-") as scratch:
        run_task({**request, "scratch": scratch}, "compiling the model")
