"""What Ray's autoscaler adds for a version that waits, given the node types that ship: Ray's own scheduler decides."""

from pathlib import Path

import pytest
import yaml
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager
from ray._raylet import RAY_NODE_ACCELERATOR_TYPE_KEY, node_labels_match_selector
from ray.autoscaler._private.kuberay.autoscaling_config import _generate_available_node_types_from_ray_cr_spec
from ray.autoscaler._private.kuberay.utils import parse_quantity
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.common_pb2 import LabelSelectorOperator
from ray.util.accelerators import accelerators

from cluster.policy.placement import Demand
from cluster.selectors import parse_selectors
from cluster.settings import RaySettings
from deployments.applications import actor_options

CONFIG = Path(__file__).parents[3] / "config"
GIB = 1 << 30

# What EC2 would tell Ray of the instance types in aws.yaml, as Ray takes it: 70 % of the memory.
EC2 = {
    "c7i.2xlarge": {"CPU": 8, "memory": int(16 * GIB * 0.7)},
    "g6.xlarge": {"CPU": 4, "memory": int(16 * GIB * 0.7), "GPU": 1, "accelerator_type:L4": 1},
}


def kubernetes():
    for document in yaml.safe_load_all((CONFIG / "kubernetes/prism.yaml").read_text()):
        if document["kind"] == "RayCluster":
            return document["spec"]


def launcher(cloud):
    return yaml.safe_load((CONFIG / f"ray/{cloud}.yaml").read_text())


def node_types(where):
    """The node types as Ray's autoscaler has them."""
    if where == "kubernetes":
        types = _generate_available_node_types_from_ray_cr_spec(kubernetes())
        config = {"available_node_types": types, "head_node_type": "headgroup", "provider": {"type": "kuberay"}}
    else:
        config = launcher(where)
        for found in config["available_node_types"].values():
            found["resources"] = EC2.get(found["node_config"].get("InstanceType"), {}) | found["resources"]
    base = {name: [] for name in ("cluster_synced_files", "initialization_commands", "setup_commands")}
    started = {f"{kind}_{what}": [] for kind in ("head", "worker") for what in ("setup_commands", "start_ray_commands")}
    whole = {"cluster_name": "prism", "max_workers": 8, "auth": {}, "file_mounts": {}, **base, **started, **config}
    return AutoscalingConfig(prepare_config(whole), skip_content_hash=True).get_node_type_configs()


def constraint(label, value):
    refused, listed = value.startswith("!"), value.lstrip("!").removeprefix("in(").rstrip(")").split(",")
    operator = LabelSelectorOperator.LABEL_OPERATOR_NOT_IN if refused else LabelSelectorOperator.LABEL_OPERATOR_IN
    return label, operator, listed


def added(types, demand):
    """{node type: count} that Ray adds for one replica with the options Prism gives it, where only the least is up."""
    options = actor_options(demand)
    selector = [constraint(*item) for item in options.get("label_selector", {}).items()]
    request = ResourceRequestUtil.make(demand.resources(), label_selectors=[selector] if selector else None)
    reply = ResourceDemandScheduler(event_logger=None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=9,
            resource_requests=ResourceRequestUtil.group_by_count([request]),
        )
    )
    launched = {launch.instance_type: launch.count for launch in reply.to_launch}
    return {name: more for name, count in launched.items() if (more := count - types[name].min_worker_nodes)}


def wanting(on, gpus=1):
    return Demand(cpus=1, gpus=gpus, memory_bytes=4 * GIB, on=parse_selectors([on] if on else []))


@pytest.mark.parametrize("where", ["kubernetes", "aws", "gcp"])
def test_a_version_for_a_kind_of_gpu_brings_a_node_where_there_is_none(where):
    types = node_types(where)
    kind = types["gpu"].labels[RAY_NODE_ACCELERATOR_TYPE_KEY]
    for on in ("", f"accelerator-type={kind}", f"accelerator-type=in(A100,{kind})", "accelerator-type=!A100"):
        assert added(types, wanting(on)) == {"gpu": 1}, on
    assert added(types, wanting("accelerator-type=A100")) == {}
    types["gpu"].labels.clear()
    assert added(types, wanting(f"accelerator-type={kind}")) == {}  # nothing but the label told Ray


@pytest.mark.parametrize("where", ["aws", "gcp"])
def test_a_version_for_cpus_brings_a_node_without_gpu(where):
    types = node_types(where)
    assert added(types, wanting("", gpus=0)) == {"cpu": 1}


def test_groups_of_pods_are_found_by_their_pool():
    types = node_types("kubernetes")
    assert added(types, wanting("pool=gpu")) == {"gpu": 1}
    large = Demand(cpus=types["cpu"].resources["CPU"], on=parse_selectors(["pool=cpu"]))
    types["cpu"].min_worker_nodes = 0
    assert added(types, large) == {"cpu": 1}


def test_a_pod_has_what_its_group_promises():
    for group in kubernetes()["workerGroupSpecs"]:
        limit = int(parse_quantity(group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]))
        promised = node_types("kubernetes")[group["groupName"]].resources["memory"]
        # Ray offers what is free when it starts, less its object store; a promise that is not kept adds pod after pod.
        assert promised <= limit - RaySettings().object_store_bytes - GIB / 2


def test_the_label_of_a_node_type_is_what_ray_calls_the_gpu_that_it_asks_for():
    (group,) = (found for found in kubernetes()["workerGroupSpecs"] if found["groupName"] == "gpu")
    product = group["template"]["spec"]["nodeSelector"]["nvidia.com/gpu.product"].replace("-", " ")
    (google,) = launcher("gcp")["available_node_types"]["gpu"]["node_config"]["guestAccelerators"]
    amazon = launcher("aws")["available_node_types"]["gpu"]["node_config"]["InstanceType"]
    gpu = NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type
    named = {
        "kubernetes": gpu(product),
        "gcp": gpu(google["acceleratorType"].upper().replace("-", " ")),
        "aws": next(name.split(":")[1] for name in EC2[amazon] if name.startswith("accelerator_type:")),
    }
    for where, name in named.items():
        assert node_types(where)["gpu"].labels[RAY_NODE_ACCELERATOR_TYPE_KEY] == name
        assert name in vars(accelerators).values()


def test_every_accelerator_that_ray_names_can_be_selected_by_the_label_that_ray_gives_it():
    kinds = {value for name, value in vars(accelerators).items() if name[0].isupper()}
    assert len(kinds) > 40 and {"H100", "AMD-Instinct-MI300X-OAM", "TPU-V6E"} <= kinds
    for kind in kinds:
        selector = parse_selectors([f"accelerator-type={kind}"])
        assert node_labels_match_selector({RAY_NODE_ACCELERATOR_TYPE_KEY: kind}, selector)
        assert not node_labels_match_selector({}, selector)
