"""PyTorch models from disk, without running code that comes with the file.

Weights are loaded with `weights_only=True` into the module that the user's factory builds. A file that holds pickled
code, or a `.pt2` that could run some (see `converters.torch.pt2`), needs `trust_pickle`.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from cluster.errors import ConversionFailed, InvalidRequest
from converters.candidate import Options
from converters.onnx.failures import brief

MAX_WEIGHT_BYTES = 64 << 30
NESTED_KEYS = ("state_dict", "model_state_dict", "model")  # where training scripts put weights beside other things
PARALLEL_PREFIX = "module."  # what torch.nn.DataParallel puts before every name


def load_module(path: Path, options: Options) -> tuple[torch.nn.Module, tuple[str, ...]]:
    """The module in evaluation mode with the file's weights, and notes on what was done to get there.

    Raises: InvalidRequest for a missing or wrong factory, ConversionFailed if weights and module do not fit.
    """
    if path.stat().st_size > MAX_WEIGHT_BYTES:
        raise ConversionFailed(f"{path.name}: {path.stat().st_size} bytes, at most {MAX_WEIGHT_BYTES} are read")
    loaded = _load(path, options.trust_pickle)
    notes: list[str] = []
    if isinstance(loaded, torch.nn.Module):
        module = loaded
        notes.append("the source was a pickled module, loaded because it was trusted")
    else:
        if options.factory is None:
            raise InvalidRequest(f"factory: {path.name} holds weights only; --factory module:callable builds the model")
        module = build(options.factory)
        weights, found = _weights(loaded, path.name)
        notes += found
        _fill(module, weights, path.name)
    if any(part.training for part in module.modules()):
        module.eval()
        notes.append("the source was in training mode and was put into evaluation mode")
    module.requires_grad_(False)
    return module, tuple(notes)


def build(factory: str | Callable[[], Any]) -> torch.nn.Module:
    """What the factory returns; its module may lie in the current directory. Raises: InvalidRequest."""
    named = factory if isinstance(factory, str) else getattr(factory, "__name__", repr(factory))
    make = _resolve(factory) if isinstance(factory, str) else factory
    try:
        with _current_directory_importable():
            module = make()
    except Exception as error:
        raise InvalidRequest(f"factory: {named} raised {type(error).__name__}: {brief(error)}") from None
    if not isinstance(module, torch.nn.Module):
        raise InvalidRequest(f"factory: expected a torch.nn.Module from {named}, got {type(module).__name__}")
    return module


def _resolve(factory: str) -> Callable[[], Any]:
    module_name, _, attribute = factory.partition(":")
    if not module_name or not attribute:
        raise InvalidRequest(f"factory: expected module:callable, got {factory!r}")
    with _current_directory_importable():
        try:
            found: Any = import_module(module_name)
        except Exception as error:  # a user's module may raise anything
            raise InvalidRequest(
                f"factory: importing {module_name!r} raised {type(error).__name__}: {brief(error)}"
            ) from None
    for name in attribute.split("."):
        if not hasattr(found, name):
            raise InvalidRequest(f"factory: {module_name!r} has no {attribute!r}")
        found = getattr(found, name)
    if not callable(found):
        raise InvalidRequest(f"factory: expected a callable, {factory!r} is {type(found).__name__}")
    make: Callable[[], Any] = found
    return make


@contextmanager
def _current_directory_importable() -> Any:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _load(path: Path, trust_pickle: bool) -> Any:
    if path.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:  # safetensors' error class is private to its binary module
            raise ConversionFailed(f"{path.name}: not a safetensors file ({brief(error)})") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not trust_pickle:
            raise ConversionFailed(
                f"{path.name}: it holds pickled code, not only weights. Save module.state_dict() (or safetensors) and "
                "use --factory; --trust-pickle loads it, and runs whatever its author put in"
            ) from None
    except Exception as error:
        raise ConversionFailed(f"{path.name}: torch cannot read it: {brief(error)}") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise ConversionFailed(f"{path.name}: its pickle cannot be loaded: {brief(error)}") from None


def _weights(loaded: Any, name: str) -> tuple[Mapping[str, torch.Tensor], list[str]]:
    notes: list[str] = []
    for key in NESTED_KEYS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            notes.append(f"weights were taken from {key!r} of the checkpoint")
            break
    if (
        not isinstance(loaded, Mapping)
        or not loaded
        or not all(isinstance(v, torch.Tensor) for k, v in loaded.items() if k != "_metadata")
    ):
        raise ConversionFailed(f"{name}: expected a state dict of tensors, got {type(loaded).__name__}")
    if all(key.startswith(PARALLEL_PREFIX) for key in loaded):
        loaded = {key.removeprefix(PARALLEL_PREFIX): value for key, value in loaded.items()}
        notes.append(f"{PARALLEL_PREFIX!r} was taken off every weight's name")
    return loaded, notes


def _fill(module: torch.nn.Module, weights: Mapping[str, torch.Tensor], name: str) -> None:
    wanted = module.state_dict()
    missing = sorted(set(wanted) - set(weights))
    extra = sorted(set(weights) - set(wanted))
    if missing or extra:
        raise ConversionFailed(
            f"{name}: its weights are not those of the factory's module: {len(missing)} missing"
            f"{_few(missing)}, {len(extra)} unknown{_few(extra)}"
        )
    wrong = [key for key in wanted if wanted[key].shape != weights[key].shape]
    if wrong:
        key = wrong[0]
        raise ConversionFailed(
            f"{name}: {key}: expected shape {list(wanted[key].shape)}, got {list(weights[key].shape)}"
            + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
        )
    module.load_state_dict(dict(weights))


def _few(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
