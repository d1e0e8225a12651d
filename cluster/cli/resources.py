"""The options by which an operator says what a replica needs of a node."""

from __future__ import annotations

import re
from typing import Any

import click

from cluster.cli.output import F
from cluster.errors import InvalidRequest
from cluster.selectors import parse_selectors

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}

_OPTIONS = (
    click.option("--cpus", "num_cpus", type=float, help="CPUs, and threads, of one replica."),
    click.option("--gpus", "num_gpus", type=float, help="GPUs of one replica, or a share of one: 0.25."),
    click.option(
        "--accelerator",
        type=click.Choice(["auto", "cpu", "gpu"]),
        help="What it computes on; auto: a GPU where the cluster has one that its runtime can use.",
    ),
    click.option(
        "--provider",
        type=click.Choice(["auto", "cuda", "tensorrt"]),
        help="How ONNX Runtime uses the GPU; auto: cuda. TensorRT builds engines when it loads, and keeps them.",
    ),
    click.option(
        "--memory",
        metavar="SIZE",
        help="Memory of one replica, such as 4G; auto: what the profile measured, with a margin; 0: reserve none.",
    ),
    click.option(
        "--on",
        multiple=True,
        metavar="LABEL=VALUE",
        help="Only on nodes with this label, such as accelerator-type=A100, zone=in(a,b), pool=!spot; any: on all.",
    ),
    click.option(
        "--allow-cpu/--no-allow-cpu",
        "cpu_fallback",
        default=None,
        help="Whether a replica that was given a GPU may compute on the CPU, or by CUDA instead of TensorRT, if its "
        "runtime cannot do better.",
    ),
)


def resource_options(command: F) -> F:
    """Adds the options; `resources` makes fields of DeploySettings of those that are not fields themselves."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def resources(options: dict[str, Any]) -> dict[str, Any]:
    """Fields of DeploySettings for `--memory` and `--on`, which are taken out of `options`. Raises: InvalidRequest."""
    memory, on = options.pop("memory"), options.pop("on")
    fields: dict[str, Any] = {}
    if memory is not None:
        fields["memory_bytes"] = None if memory == "auto" else size_bytes(memory)
    if on:
        fields["on"] = {} if tuple(on) == ("any",) else parse_selectors(on)
    return fields


def size_bytes(text: str) -> int:
    """Bytes in `4G`, `512MiB`, `1.5g`; K, M, G and T are powers of 1024. Raises: InvalidRequest."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InvalidRequest(f"memory: expected a size such as 4G or 512M, auto or 0, got {text!r}")
    return int(float(found[1]) * 1024 ** _POWERS[found[2].upper()])
