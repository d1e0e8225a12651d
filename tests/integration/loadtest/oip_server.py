"""A small Open Inference Protocol server to aim load at: it answers after a delay, and can stall once.

python oip_server.py DELAY_S STALL_AT_S STALL_S   prints its port; the stall counts from the first inference.
"""

import asyncio
import json
import sys
import time

DELAY_S, STALL_AT_S, STALL_S = (float(value) for value in sys.argv[1:4])
MODEL = {
    "name": "m",
    "versions": ["1", "2"],
    "platform": "fake",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
}
TEXT = {**MODEL, "name": "text", "inputs": [{"name": "t", "datatype": "BYTES", "shape": [-1, 1]}]}
first_s: float | None = None
answered = 0


async def infer() -> tuple[int, dict[str, str], dict[str, object]]:
    global first_s, answered
    now = time.monotonic()
    first_s = first_s or now
    left_s = first_s + STALL_AT_S + STALL_S - now
    stalled = STALL_S and first_s + STALL_AT_S <= now < first_s + STALL_AT_S + STALL_S
    await asyncio.sleep(left_s if stalled else DELAY_S)
    answered += 1
    version = "2" if answered % 10 == 0 else "1"
    return 200, {"X-Prism-Model-Version": version}, {"model_name": "m", "model_version": version, "outputs": []}


def metrics() -> str:
    lines = [f'prism_replicas{{model="m",version="1"}} {1 + answered // 100}', 'prism_queue_rows{model="m"} 3']
    lines += [f'prism_batch_rows_bucket{{model="m",version="1",le="{le}"}} {answered // 2}' for le in ("2", "+Inf")]
    lines += [f'prism_batch_rows_sum{{model="m",version="1"}} {answered}']
    lines += [f'prism_batch_rows_count{{model="m",version="1"}} {answered // 2}']
    return "\n".join(lines) + "\n"


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            method, path, _ = line.decode().split(" ")
            length = 0
            while (header := await reader.readline()).strip():
                name, _, value = header.decode().partition(":")
                if name.lower() == "content-length":
                    length = int(value)
            await reader.readexactly(length)
            status, headers, body = 200, {}, b"{}"
            if path.endswith("/infer") and method == "POST":
                status, headers, answer = await infer()
                body = json.dumps(answer).encode()
            elif path == "/metrics":
                body = metrics().encode()
            elif path == "/v2/models/m":
                body = json.dumps(MODEL).encode()
            elif path == "/v2/models/text":
                body = json.dumps(TEXT).encode()
            elif not path.startswith("/v2/health"):
                status, body = 404, b'{"error":"unknown model"}'
            head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            writer.write(f"HTTP/1.1 {status} X\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError, ValueError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


asyncio.run(main())
