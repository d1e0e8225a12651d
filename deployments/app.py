"""Entry point: `python -m deployments.app --boot FILE` brings Serve, the controller and the first gateway up.

Run by the supervisor once Ray answers. Exits 0 when the gateway answers, else with one line on stderr.
"""

from __future__ import annotations

import argparse
import sys
import time

import ray
from ray import serve

from cluster import ray_head
from cluster.errors import OperatorError, ServingError
from cluster.policy.reconcile import reason_of
from cluster.probe import gateway_answers
from cluster.settings import Boot
from deployments import applications as apps

WAIT_S = 120.0


def bring_up(boot_file: str) -> None:
    """Deploy the controller and this node's gateway, and wait until the gateway answers. Raises: OperatorError."""
    boot = Boot.read(boot_file)
    ray_head.connect(boot)
    serve.start(proxy_location="Disabled")
    node = ray.get_runtime_context().get_node_id()
    gateway = apps.gateway_application(node, boot.settings.gateway)
    ours = (apps.CONTROLLER_APP, apps.GATEWAY_APP + node)
    serve.run_many(
        [
            serve.RunTarget(apps.controller_application(node), name=ours[0], route_prefix=None),
            serve.RunTarget(gateway, name=ours[1], route_prefix=None),
        ],
        wait_for_applications_running=False,
    )
    deadline_s = time.monotonic() + WAIT_S
    while time.monotonic() < deadline_s:
        found = serve.status().applications
        for name in ours:  # others may be there already, also those of a head that was lost: the controller's business
            app = found.get(name)
            if app is not None and app.status == "DEPLOY_FAILED":
                messages = [app.message, *(deployment.message for deployment in app.deployments.values())]
                why = reason_of("\n".join(messages))
                raise OperatorError(f"{name} could not be started: {why}")
        if gateway_answers(boot.settings.http.host, boot.http_port):
            return
        time.sleep(0.2)
    raise OperatorError(f"the gateway did not answer on port {boot.http_port} within {WAIT_S:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--boot", required=True)
    arguments = parser.parse_args()
    try:
        bring_up(arguments.boot)
    except ServingError as error:
        print(error.message, file=sys.stderr)
        return 1
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
