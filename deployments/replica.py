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
from converters.proof.profile import costs_here
from converters.runtime import Arrays, Runtime, open_runtime
from deployments import costs, startup
from deployments.engine import Engine
from deployments.memory import freeze_start_up
from deployments.startup import Stopwatch
from deployments.wire.server import WireServer, WireSettings

log = logging.getLogger("ray.serve")


class ModelReplica:
    """One replica of one model version. Deployed by `deployments.applications.model_application`."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, model: str, record: str, threads: int, accelerator: str, provider: str, drain_s: float
    ) -> None:
        """Raises whatever keeps the version from being served, so that a failed load is a failed start.

        Args:
            model: The model's name.
            record: JSON of the `VersionRecord`, without its `deploy`, which arrives through `reconfigure`.
            threads: Threads the runtime computes with.
            accelerator: "cpu", "gpu", or "auto" where the CPU may stand in for a GPU.
            provider: How the runtime is to use a GPU, as `DeploySettings.provider`.
            drain_s: How long `__del__` may wait for what gateways have sent.
        """
        self._model = model
        self._record = msgspec.json.decode(record, type=VersionRecord)
        boot = Boot.of_this_node()
        watch = Stopwatch.of_this_process()
        watch.lap(startup.PROCESS)
        store = ArtifactStore(boot.artifacts_url, Path(boot.home) / "cache")
        self._artifact = await asyncio.to_thread(store.verified, self._record.uri, self._record.digest)
        watch.lap(startup.FETCH)
        self._drain_s = drain_s
        derived = store.derived
        runtime = await asyncio.to_thread(
            open_runtime,
            self._artifact,
            threads=threads,
            accelerator=accelerator,
            provider=provider,
            gpu_share=min(1.0, ray.get_runtime_context().get_assigned_resources().get("GPU", 1.0)),
            derived=derived,
        )
        watch.lap(startup.LOAD)
        watch.split(startup.LOAD, startup.BUILD, derived.spent_s)
        if placed := getattr(runtime, "placed", None):
            log.info("%s:%s: nodes by provider: %s", model, self._record.version, placed)
        chosen = accelerator != "auto" and provider != "tensorrt"
        device = accelerator if chosen else used_device(runtime)
        self._costs = self._artifact.cost_curve(device)
        example = sample_of(self._artifact)
        batched = self._record.signature.batched
        await asyncio.to_thread(warm_up, runtime, example, self._policy(DeploySettings()).max_rows if batched else 0)
        watch.lap(startup.WARM_UP)
        self._costs = await asyncio.to_thread(costs_here, runtime, self._artifact, example, device, threads)
        policy = self._policy(DeploySettings())
        watch.lap(startup.MEASURE)
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
            Counters(time.monotonic()), self._costs.rows_per_s(policy.max_rows), self._start.again_s
        )
        log.info("%s:%s %s", model, self._record.version, self._start)

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
        """Where gateways reach this replica, how it started, what batches cost; Serve broadcasts it to every handle."""
        told = {startup.METADATA: self._start.encode(), costs.METADATA: costs.encode(self._costs)}
        return {**self._wire.addresses(), **told}

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
    """What a runtime that was free to choose computes on, as profiles name it: "cpu", "gpu" or "tensorrt"."""
    provider = str(getattr(runtime, "provider", ""))
    return {"CPUExecutionProvider": "cpu", "TensorrtExecutionProvider": "tensorrt"}.get(provider, "gpu")


def sample_of(artifact: Artifact) -> Arrays:
    """The artifact's example of each input, in the signature's order.

    Raises: ArtifactCorrupt if there is no sample or it does not fit the signature.
    """
    file = artifact.path / SAMPLE
    if not file.is_file():
        raise ArtifactCorrupt(f"{SAMPLE}: it is not there, so nothing shows that the model answers")
    inputs = artifact.manifest.signature.inputs
    with np.load(file, allow_pickle=False) as sample:
        missing = [spec.name for spec in inputs if spec.name not in sample]
        if missing:
            raise ArtifactCorrupt(f"{SAMPLE}: no example of input {missing[0]!r}")
        return tuple(np.ascontiguousarray(sample[spec.name]) for spec in inputs)


def warm_up(runtime: Runtime, example: Arrays, batch_rows: int) -> None:
    """Run the sample, its first row alone and as a batch of `batch_rows`, so that the first request finds all loaded.

    `batch_rows` 0: as it is, for a model without a batch axis.
    """
    if not batch_rows:
        runtime.run(example)
        return
    runtime.run(tuple(array[:1] for array in example))
    runtime.run(tuple(np.repeat(array[:1], batch_rows, axis=0) for array in example))
