"""What the raw-body servers share: the model behind float32 bytes, and their options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import click
import numpy as np

from loadtest.bench.work import INPUT, OUTPUT, Floats, open_session

F = TypeVar("F", bound=Callable[..., Any])


class BodyModel(Protocol):
    """A model behind some form of request bodies."""

    def read(self, body: bytes, headers: Mapping[str, str]) -> Any:
        """The request in `body`; `headers` have lower-case names."""

    def run(self, requests: list[Any]) -> list[Any]:
        """One answer for each of `requests`, in one call of the model if possible."""

    def write(self, asked: Any, answer: Any) -> tuple[bytes, dict[str, str]]:
        """Body and headers of the answer to `asked`."""


class RawModel:
    """Rows from bodies, answers for batches of rows."""

    def __init__(self, model_file: str, threads: int = 1) -> None:
        self._session = open_session(Path(model_file), threads)
        self._shape = tuple(self._session.get_inputs()[0].shape[1:])
        self(np.zeros((1, *self._shape), np.float32))

    def row(self, body: bytes) -> Floats:
        """float32 [*shape]. Raises: ValueError for a body of another size."""
        return np.frombuffer(body, np.float32).reshape(self._shape)

    def read(self, body: bytes, headers: Mapping[str, str]) -> Floats:
        """As `row`, for servers of any `BodyModel`."""
        return self.row(body)

    def run(self, requests: list[Floats]) -> list[Floats]:
        return list(self(np.stack(requests)))

    def write(self, asked: Floats, answer: Floats) -> tuple[bytes, dict[str, str]]:
        return answer.tobytes(), {"Content-Type": "application/octet-stream"}

    def __call__(self, rows: Floats) -> Floats:
        """float32 [n, *answer] for float32 [n, *shape]."""
        answers: Floats = self._session.run([OUTPUT], {INPUT: rows})[0]
        return answers


def server_options(command: F) -> F:
    """`--model-file`, `--port`, `--max-batch-rows`, `--wait-ms`."""
    for option in (
        click.option("--wait-ms", default=1.0, show_default=True, help="How long a batch waits to be filled."),
        click.option("--max-batch-rows", default=16, show_default=True, help="Most rows of one batch."),
        click.option("--port", type=int, required=True, help="On 127.0.0.1."),
        click.option("--model-file", required=True, help="ONNX file with input x and output y."),
    ):
        command = option(command)
    return command
