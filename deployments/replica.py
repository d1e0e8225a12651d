"""A model replica: Ray Serve's view of one engine.

It fetches and verifies the artifact, opens the runtime, warms it up with the artifact's sample, listens on the wire,
and reports addresses, health and load. No request reaches it through Serve except `wake`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import ray
from ray import serve

from cluster.artifact import SAMPLE, Artifact
from cluster.artifacts_store import ArtifactStore
from cluster.documents import DeploySettings, VersionRecord
from cluster.errors import ArtifactCorrupt
from cluster.policy.batch import BatchPolicy
from cluster.policy.load import Counters, LoadMeter
from cluster.settings import Boot
from converters.runtime import Runtime, open_runtime
from deployments import startup
from deployments.engine import Engine
from deployments.memory import freeze_start_up
from deployments.startup import Stopwatch
from deployments.wire.server import WireServer, WireSettings

log = logging.getLogger("ray.serve")


class ModelReplica:
    """One replica of one model version. Deployed by `deployments.applications.model_application`."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, model: str, record: str, threads: int, accelerator: str, drain_s: float
    ) -> None:
        """Raises whatever keeps the version from being served, so that a failed load is a failed start.

        Args:
            model: The model's name.
            record: JSON of the `VersionRecord`, without its `deploy`, which arrives through `reconfigure`.
            threads: Threads the runtime computes with.
            accelerator: "cpu", "gpu", or "auto" where the CPU may stand in for a GPU.
            drain_s: How long `__del__` may wait for what gateways have sent.
        """
        self._model = model
        self._record = msgspec.json.decode(record, type=VersionRecord)
        boot = Boot.of_this_node()
        watch = Stopwatch.of_this_process()
        watch.lap(startup.PROCESS)
        self._artifact = await asyncio.to_thread(self._fetch, boot)
        watch.lap(startup.FETCH)
        self._drain_s = drain_s
        runtime = await asyncio.to_thread(open_runtime, self._artifact, threads=threads, accelerator=accelerator)
        watch.lap(startup.LOAD)
        self._costs = self._artifact.cost_curve(accelerator if accelerator != "auto" else used_device(runtime))
        policy = self._policy(DeploySettings())
        await asyncio.to_thread(warm_up, runtime, self._artifact, policy.max_rows)
        watch.lap(startup.WARM_UP)
        loop = asyncio.get_running_loop()
        self._engine = Engine(runtime, self._record.signature, policy, loop)
        self._engine.start()
        unique = serve.get_replica_context().replica_id.unique_id
        self._wire = await WireServer.listen(
            self._engine,
            self._record.signature,
            WireSettings(
                secret=boot.wire_secret,
                unix_path=str(Path(boot.run_dir) / f"w-{unique}.sock"),
                tcp_host=boot.node_ip,
                node_id=ray.get_runtime_context().get_node_id(),
                digest=self._record.digest,
            ),
        )
        freeze_start_up()
        watch.lap(startup.LISTEN)
        self._start = watch.finished()
        self._meter = LoadMeter(
            Counters(time.monotonic()), self._costs.rows_per_s(policy.max_rows), self._start.total_s
        )
        log.info("%s:%s %s", model, self._record.version, self._start)

    def _fetch(self, boot: Boot) -> Artifact:
        store = ArtifactStore(boot.artifacts_url, Path(boot.home) / "cache")
        return store.verified(self._record.uri, self._record.digest)

    def _policy(self, deploy: DeploySettings) -> BatchPolicy:
        most = self._record.signature.max_rows
        rows = deploy.max_batch_rows or self._costs.best_rows(most)
        return BatchPolicy(
            max_rows=min(rows, most),
            max_queue_rows=max(deploy.max_queue_rows, most),
            max_wait_s=deploy.max_wait_s,
            costs=self._costs,
        )

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Serve calls this when the version's settings change in place."""
        policy = self._policy(msgspec.convert(user_config, DeploySettings))
        self._engine.set_policy(policy)
        self._meter.capacity_rows_per_s = self._costs.rows_per_s(policy.max_rows)

    def record_replica_metadata(self) -> dict[str, str]:
        """Where gateways reach this replica, and how it started; Serve broadcasts it to every handle."""
        return {**self._wire.addresses(), startup.METADATA: self._start.encode()}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Rates since the last call, and what waits now; `cluster.policy.load.ReplicaLoad` has the names."""
        engine = self._engine
        now = Counters(
            time.monotonic(), engine.rows_in, engine.rows_done, engine.busy_total_s(), engine.busy_s, engine.expected_s
        )
        return asdict(self._meter.read(now, engine.queue_rows(), self._wire.backlog_rows()))

    async def check_health(self) -> None:
        """Raises if the engine has hung."""
        self._engine.check()

    async def wake(self) -> str:
        """Nothing to do: a queued call is how Serve learns that a version at zero replicas is wanted."""
        return self._record.version

    async def __del__(self) -> None:
        """Serve awaits this when it stops the replica: finish what gateways have sent."""
        wire = getattr(self, "_wire", None)
        if wire is not None:
            await wire.drain(timeout_s=self._drain_s)
            self._engine.close()


def used_device(runtime: Runtime) -> str:
    """What a runtime that was free to choose computes on: "cpu" or "gpu"."""
    return "cpu" if str(getattr(runtime, "provider", "")).startswith("CPU") else "gpu"


def warm_up(runtime: Runtime, artifact: Artifact, batch_rows: int) -> None:
    """Run the artifact's sample, alone and as a batch of `batch_rows`, so that the first request finds all loaded.

    Raises: ArtifactCorrupt if there is no sample or it does not fit the signature.
    """
    signature = artifact.manifest.signature
    file = artifact.path / SAMPLE
    if not file.is_file():
        raise ArtifactCorrupt(f"{SAMPLE}: it is not there, so nothing shows that the model answers")
    with np.load(file, allow_pickle=False) as sample:
        missing = [spec.name for spec in signature.inputs if spec.name not in sample]
        if missing:
            raise ArtifactCorrupt(f"{SAMPLE}: no example of input {missing[0]!r}")
        inputs = tuple(np.ascontiguousarray(sample[spec.name]) for spec in signature.inputs)
    runtime.run(inputs if not signature.batched else tuple(array[:1] for array in inputs))
    if signature.batched:
        runtime.run(tuple(np.repeat(array[:1], batch_rows, axis=0) for array in inputs))
