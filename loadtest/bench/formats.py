"""Request bytes and answers in the formats that are compared.

raw     float32 bytes in, float32 bytes out; for servers of the Open Inference Protocol its raw binary request
binary  the protocol's binary tensor data behind its JSON header, as `tritonclient` sends it
json    tensors as JSON numbers
"""

from __future__ import annotations

import numpy as np
import orjson

from loadtest.bench.answers import headers_of
from loadtest.bench.work import INPUT, OUTPUT, Floats

FORMATS = ("raw", "binary", "json")
_LENGTH = "inference-header-content-length"


def request_bytes(name: str, path: str, port: int, row: Floats) -> bytes:
    """A whole HTTP request for one row."""
    headers = {"Host": f"127.0.0.1:{port}", "Content-Type": "application/octet-stream"}
    if name == "raw":
        body = row.tobytes()
        headers["Inference-Header-Content-Length"] = "0"
    elif name == "binary":
        tensor = {
            "name": INPUT,
            "shape": [1, *row.shape],
            "datatype": "FP32",
            "parameters": {"binary_data_size": row.nbytes},
        }
        wanted = {"name": OUTPUT, "parameters": {"binary_data": True}}
        head = orjson.dumps({"inputs": [tensor], "outputs": [wanted]})
        headers["Inference-Header-Content-Length"] = str(len(head))
        body = head + row.tobytes()
    elif name == "json":
        values = np.ascontiguousarray(row).ravel()
        tensor = {"name": INPUT, "shape": [1, *row.shape], "datatype": "FP32", "data": values}
        headers["Content-Type"] = "application/json"
        body = orjson.dumps({"inputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY)
    else:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {name!r}")
    headers["Content-Length"] = str(len(body))
    lines = "".join(f"{field}: {value}\r\n" for field, value in headers.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def answer_values(answer: bytes) -> Floats:
    """The tensor of a whole answer (head, empty line, body), flat. Raises: ValueError if there is none."""
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = headers_of(head.partition(b"\r\n")[2])
    if _LENGTH in fields:
        body = body[int(fields[_LENGTH]) :]
    elif fields.get("content-type", "").startswith("application/json"):
        (output,) = orjson.loads(body)["outputs"]
        return np.array(output["data"], dtype=np.float32).ravel()
    return np.frombuffer(body, dtype=np.float32)
