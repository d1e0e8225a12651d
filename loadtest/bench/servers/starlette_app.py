"""What one would write oneself: Starlette on uvicorn, the model in a thread, no batching.

python -m loadtest.bench.servers.starlette_app --model-file model.onnx --port 8000
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import click
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loadtest.bench.servers.model import RawModel, server_options

INLINE_BYTES = 4096  # a model with such small inputs costs less than handing it to a thread


def application(model: RawModel) -> Starlette:
    """POST /infer, GET /ready."""
    thread = ThreadPoolExecutor(1)

    async def infer(request: Request) -> Response:
        body = await request.body()
        rows = model.row(body)[None]
        if len(body) <= INLINE_BYTES:
            answers = model(rows)
        else:
            answers = await asyncio.get_running_loop().run_in_executor(thread, model, rows)
        return Response(answers.tobytes(), media_type="application/octet-stream")

    async def ready(_: Request) -> Response:
        return PlainTextResponse("ready")

    return Starlette(routes=[Route("/infer", infer, methods=["POST"]), Route("/ready", ready)])


@click.command()
@server_options
def main(model_file: str, port: int, max_batch_rows: int, wait_ms: float) -> None:
    """Serve until SIGTERM."""
    import uvicorn

    model = RawModel(model_file)
    uvicorn.run(
        application(model),
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        lifespan="off",
    )


if __name__ == "__main__":
    main()
