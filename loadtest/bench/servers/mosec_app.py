"""mosec, a batching server in Rust around Python workers: one worker, one thread.

python -m loadtest.bench.servers.mosec_app --model-file model.onnx --port 8000
"""

from __future__ import annotations

import os
import sys
from typing import Any

import click
import numpy as np
from mosec import Server, Worker  # type: ignore[import-not-found,unused-ignore]

from loadtest.bench.servers.model import RawModel, server_options

MODEL_FILE = "PRISM_BENCH_MODEL_FILE"  # workers are processes of their own


class Model(Worker):  # type: ignore[misc,unused-ignore]
    """float32 bytes in and out."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._model = RawModel(os.environ[MODEL_FILE])

    def deserialize(self, data: bytes) -> Any:
        return self._model.row(data)

    def serialize(self, data: Any) -> bytes:
        return bytes(data.tobytes())

    def forward(self, data: Any) -> Any:
        return self._model(np.stack(data)) if isinstance(data, list) else self._model(data[None])[0]


@click.command()
@server_options
def main(model_file: str, port: int, max_batch_rows: int, wait_ms: float) -> None:
    """Serve until SIGTERM."""
    os.environ[MODEL_FILE] = model_file
    # mosec reads its own options from the command line.
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(port), "--timeout", "60000"]
    sys.argv += ["--log-level", "warning", "--capacity", "2000"]
    server = Server()
    server.append_worker(Model, num=1, max_batch_size=max_batch_rows, max_wait_time=max(1, round(wait_ms)), timeout=60)
    server.run()


if __name__ == "__main__":
    main()
