"""TensorRT with its builder, for processes of a Prism that find it through PYTHONPATH: an engine is the ONNX file.

Each build adds a line to the file that `TENSORRT_BUILDS` names: the most memory that the builder was allowed to use.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

from trt_models import Logger, Runtime

__all__ = ["Builder", "ILogger", "Logger", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "Runtime"]
__version__ = "11.4.0"

NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
MemoryPoolType = SimpleNamespace(WORKSPACE=0)


class ILogger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)


class Network:
    content = b""


class OnnxParser:
    num_errors = 0

    def __init__(self, network: Network, log: ILogger) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        self.network.content = Path(path).read_bytes()
        return True


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[list[int], ...]] = {}

    def set_shape(self, name: str, *shapes: list[int]) -> None:
        self.shapes[name] = shapes


class Config:
    workspace_bytes = 0

    def set_memory_pool_limit(self, pool: int, size_bytes: int) -> None:
        self.workspace_bytes = size_bytes

    def add_optimization_profile(self, profile: Profile) -> int:
        return 0 if profile.shapes else -1

    def create_timing_cache(self, content: bytes) -> None:
        return None

    def set_timing_cache(self, cache: None, ignore_mismatch: bool) -> bool:
        return True

    def get_timing_cache(self) -> None:
        return None


class Builder:
    def __init__(self, log: ILogger) -> None:
        self.log = log

    def create_network(self, flags: int) -> Network:
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes:
        with Path(os.environ["TENSORRT_BUILDS"]).open("a") as builds:
            builds.write(f"{config.workspace_bytes}\n")
        return network.content
