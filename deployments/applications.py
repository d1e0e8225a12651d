"""The Serve applications Prism runs: one per model version, one gateway per node, one controller.

Names, options and version strings are decided here. A deployment's version string is a hash of what makes its
replicas what they are (artifact, Prism version, actor options): deploying it again with the same string changes
settings in place and leaves every replica running.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from cluster import __version__
from cluster.documents import DeploySettings, VersionRecord
from cluster.policy.load import LOOK_BACK_S, METRICS_INTERVAL_S
from cluster.policy.placement import Demand
from cluster.settings import GatewaySettings
from deployments.app_names import app_name as app_name
from deployments.app_names import parse_app_name as parse_app_name
from deployments.scaling import policy_arguments

CONTROLLER_APP = "prism-controller"
GATEWAY_APP = "prism-gateway-"  # followed by the node's id
MODEL_DEPLOYMENT = "replica"
DRAIN_SPARE_S = 10.0  # on top of the longest deadline a request may have

_QUIET = LoggingConfig(enable_access_log=False)
_CONTROL = {"max_ongoing_requests": 1000, "graceful_shutdown_wait_loop_s": 0.5, "logging_config": _QUIET}


def model_application(
    model: str, record: VersionRecord, demand: Demand, max_deadline_s: float, fresh: bool, granted: int = 0
) -> Application:
    """The application that serves `record`, whose `deploy` must be set and whose replicas need `demand` each.

    `fresh` says that Serve does not have it yet. Otherwise it keeps as many replicas as it has: Serve would set the
    count to `initial_replicas` with every change of settings. `granted` bounds the replicas where others need the
    resources (0: it does not).
    """
    from deployments.replica import ModelReplica

    deploy = record.deploy
    assert deploy is not None
    identity = replace(record, deploy=None)
    actor = actor_options(demand)
    accelerator = accelerator_of(demand, deploy.cpu_fallback)
    deployment = serve.deployment(ModelReplica, name=MODEL_DEPLOYMENT).options(
        version=_hash(__version__, asdict(identity), actor, accelerator, deploy.provider),
        ray_actor_options=actor,
        user_config=asdict(deploy),
        autoscaling_config=_autoscaling(deploy, fresh, granted),
        max_ongoing_requests=1000,
        health_check_period_s=2.0,
        health_check_timeout_s=5.0,
        graceful_shutdown_timeout_s=max_deadline_s + DRAIN_SPARE_S,
        graceful_shutdown_wait_loop_s=0.5,
        max_surge_percent=100,
        logging_config=_QUIET,
        request_router_config=RequestRouterConfig(request_router_class="deployments.gateway.router.WireRouter"),
        _internal=True,
    )
    return _bound(
        deployment,
        model,
        json.dumps(asdict(identity)),
        threads_of(demand),
        accelerator,
        deploy.provider,
        max_deadline_s + DRAIN_SPARE_S / 2,
    )


def gateway_application(node_id: str, settings: GatewaySettings) -> Application:
    """The gateway of one node."""
    from deployments.gateway.gateway import Gateway

    actor = {"num_cpus": 0, "label_selector": {"ray.io/node-id": node_id}}
    deployment = serve.deployment(Gateway, name="gateway").options(
        version=_hash(__version__, actor),
        num_replicas=settings.replicas,
        ray_actor_options=actor,
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        graceful_shutdown_timeout_s=settings.max_deadline_s + 2 * DRAIN_SPARE_S,
        max_surge_percent=100,
        _internal=True,
        **_CONTROL,
    )
    return _bound(deployment)


def controller_application(node_id: str) -> Application:
    """The controller, of which there is one, on the head's node: there its last good copy of the store lies."""
    from deployments.controller import Controller

    actor = {"num_cpus": 0, "label_selector": {"ray.io/node-id": node_id}}

    deployment = serve.deployment(Controller, name="controller").options(
        version=_hash(__version__, actor),
        num_replicas=1,
        ray_actor_options=actor,
        health_check_period_s=2.0,
        health_check_timeout_s=30.0,
        _internal=True,
        **_CONTROL,
    )
    return _bound(deployment)


def actor_options(demand: Demand) -> dict[str, Any]:
    """Ray's options for one replica."""
    options: dict[str, Any] = {"num_cpus": demand.cpus}
    if demand.gpus:
        options["num_gpus"] = demand.gpus
    if demand.memory_bytes:
        options["memory"] = demand.memory_bytes
    if demand.on:
        options["label_selector"] = dict(demand.on)
    return options


def threads_of(demand: Demand) -> int:
    """Threads that one replica computes with: the whole CPUs it was given, and at least one."""
    return max(1, int(demand.cpus))


def accelerator_of(demand: Demand, cpu_fallback: bool) -> str:
    """What the runtime is told. With a GPU reserved, less than a GPU is an error unless `cpu_fallback` allows it."""
    if not demand.gpus:
        return "cpu"
    return "auto" if cpu_fallback else "gpu"


def _autoscaling(deploy: DeploySettings, fresh: bool, granted: int) -> AutoscalingConfig:
    return AutoscalingConfig(
        min_replicas=deploy.min_replicas,
        initial_replicas=max(1, deploy.min_replicas) if fresh else None,
        max_replicas=deploy.max_replicas,
        metrics_interval_s=METRICS_INTERVAL_S,
        look_back_period_s=LOOK_BACK_S,
        upscale_delay_s=0.0,
        downscale_delay_s=0.0,  # ScalePolicy decides when
        policy=AutoscalingPolicy(
            policy_function="deployments.scaling:ServeScale", policy_kwargs=policy_arguments(deploy, granted)
        ),
    )


def _bound(deployment: Deployment, *arguments: Any) -> Application:
    application = deployment.bind(*arguments)
    assert isinstance(application, Application)
    return application


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
