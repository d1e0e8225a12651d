"""What ONNX Runtime's errors mean to whoever sent the inputs.

A kernel that finds sizes or values wrong reports them under any of three statuses, and the same statuses carry failures
that are the server's own. An artifact has answered its sample before it serves, so a node that fails at run time has
met inputs it cannot take, unless it says that memory or the device failed.
"""

from __future__ import annotations

import re

from cluster.errors import EngineFailed, InvalidRequest, ServingError

_MESSAGE_CHARS = 400
_PREFIX = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_NODE = re.compile(r"Non-zero status code returned while running (\S+) node\. Name:'.*?' Status Message: ?")

# Kernels name the place that failed, "/a/b.h:12 void f(int) const n > 0 was false. Reason" or "b.h:12 f Reason": only
# the reason says something to a client.
_PLACE = re.compile(
    r"(?:\S*[/\\])\S+\.\w+:\d+ (?:.*? was false\. ?|[^()]*\([^()]*\)(?: const)?(?: \[with [^\]]*\])? ?)?"
    r"|\b[\w-]+\.(?:h|hpp|cuh|cc|cpp|cu):\d+ \S+ ?(?:.*? was false\. ?)?"
)
# What follows names the host: "CUDA failure 700: reason ; GPU=0 ; hostname=... ; file=..."
_DEVICE_DETAILS = re.compile(r" ; GPU=.*")

_INTERNAL = re.compile(
    r"failed to allocate|out of memory|bad_alloc|smaller than requested bytes"
    r"|\b(?:cuda|cudnn|cudnn_fe|cublas|cufft|curand|cusparse|nccl|hip|miopen|rocblas) (?:failure|error)"
    r"|\b(?:cudnn|cublas|cufft|curand)_status|\bcudaError"
    r"|kernel not found|failed to find kernel|not implemented|terminate flag",
    re.IGNORECASE,
)


def failure_of(error: Exception) -> ServingError:
    """What to raise for an error of `InferenceSession.run`, with a message of one line that names no file.

    Returns:
        InvalidRequest where the inputs' sizes or values were refused. EngineFailed for everything else: memory, the
        device, kernels that are missing, and statuses that no input explains.
    """
    # Not at the top: `brief` is also asked where another runtime serves, and ONNX Runtime need not be installed.
    from onnxruntime.capi import onnxruntime_pybind11_state as status

    text = _PREFIX.sub("", " ".join(str(error).split()))
    node = ""
    while match := _NODE.match(text):  # a node inside a Loop or If is named after the one around it
        node, text = match[1], text[match.end() :]
    reason = _DEVICE_DETAILS.sub("", _PLACE.sub("", text)).strip() or "it gave no reason"
    where = _cut(f"{node}: {reason}" if node else reason)
    refused = isinstance(error, status.InvalidArgument) or (
        node != "" and isinstance(error, (status.Fail, status.RuntimeException))
    )
    if refused and not _INTERNAL.search(reason):
        return InvalidRequest(f"the model refuses these inputs: {where}")
    return EngineFailed(f"ONNX Runtime: {where}")


def brief(error: BaseException) -> str:
    """An error's message on one line, without ONNX Runtime's prefix, cut to a length that may be shown."""
    text = " ".join(str(error).split())
    match = _PREFIX.match(text)
    return _cut(text[match.end() :] if match else text)


def _cut(text: str) -> str:
    return text if len(text) <= _MESSAGE_CHARS else text[:_MESSAGE_CHARS] + "..."
