"""Ray Serve without Prism: one deployment with `@serve.batch`, one replica, one thread.

python -m loadtest.bench.servers.ray_serve --model-file model.onnx --port 8000 [--haproxy]

A model file is asked with float32 bytes; an artifact's folder in its place, with bodies of the Open Inference Protocol.

As installed, requests pass Ray Serve's Python proxy. With --haproxy they pass its HAProxy, with the flags for
throughput set and the access log off: the fastest that Ray Serve can be configured to be.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click

from loadtest.bench.servers.model import BodyModel, RawModel, server_options
from loadtest.bench.servers.oip_model import read_model

HAPROXY_FLAGS = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
MAX_ONGOING = 512
RUNNING = "replicas running:"  # before a number and a Unix time, in what is printed with --autoscale
REPLICA_HEADER = "x-replica"  # in answers with --autoscale: which replica it was


def application(
    open_model: Callable[[], BodyModel],
    max_batch_size: int,
    wait_s: float,
    replicas: int,
    access_log: bool,
    autoscale: int = 0,
) -> Any:
    """The Serve application, to be run with route prefix `/`. `autoscale`: most replicas, by Serve's defaults."""
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response

    class Model:
        def __init__(self) -> None:
            self._model = open_model()
            self._thread = ThreadPoolExecutor(1)
            self._named = {REPLICA_HEADER: serve.get_replica_context().replica_id.unique_id} if autoscale else {}

        @serve.batch(max_batch_size=max_batch_size, batch_wait_timeout_s=wait_s)  # type: ignore[untyped-decorator]
        async def infer(self, requests: list[Any]) -> list[Any]:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._model.run, requests)

        async def __call__(self, request: Request) -> Response:
            asked = self._model.read(await request.body(), request.headers)
            body, headers = self._model.write(asked, await self.infer(asked))
            return Response(body, headers={**headers, **self._named})

    options: dict[str, Any] = {} if access_log else {"logging_config": {"enable_access_log": False}}
    if autoscale:
        options["autoscaling_config"] = {"min_replicas": 1, "max_replicas": autoscale}
    else:
        options["num_replicas"] = replicas
    return serve.deployment(
        Model,
        name="model",
        max_ongoing_requests=MAX_ONGOING,
        ray_actor_options={"num_cpus": 0.1 if autoscale else 1},
        graceful_shutdown_timeout_s=1,
        **options,
    ).bind()


def _running(status: Any) -> int:
    """Replicas that answer."""
    [app] = status.applications.values()
    return int(sum(n for d in app.deployments.values() for s, n in d.replica_states.items() if "RUNNING" in str(s)))


@click.command()
@server_options
@click.option("--replicas", default=1, show_default=True)
@click.option("--autoscale", default=0, help="Most replicas, by Ray Serve's default autoscaling; 0: a fixed number.")
@click.option("--haproxy", is_flag=True, help="Ray Serve's HAProxy and throughput flags.")
def main(
    model_file: str, port: int, max_batch_rows: int, wait_ms: float, replicas: int, autoscale: int, haproxy: bool
) -> None:
    """Serve until SIGTERM, or until whoever started this has gone."""
    starter = os.getppid()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    if haproxy:
        os.environ.update(HAPROXY_FLAGS)  # Ray reads them when it is imported
    import ray
    from ray import serve

    stop = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: stop.set())
    folder = tempfile.mkdtemp(prefix="bray-", dir="/tmp")  # Unix socket paths below it must stay short
    try:
        ray.init(
            num_cpus=max(2, replicas),
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=200 << 20,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=folder,
        )
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        opener: Callable[[str], BodyModel] = read_model if Path(model_file).is_dir() else RawModel
        serve.run(
            application(partial(opener, model_file), max_batch_rows, wait_ms / 1e3, replicas, not haproxy, autoscale),
            route_prefix="/",
        )
        print("up", flush=True)
        told = 0
        while not stop.wait(0.1 if autoscale else 1.0) and os.getppid() == starter:
            if autoscale and (running := _running(serve.status())) != told:
                told = running
                print(f"{RUNNING} {running} {time.time()}", flush=True)
        serve.shutdown()
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
