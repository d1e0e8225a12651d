"""The configuration that ships, held against the schemas of what reads it."""

import json
import re
import shlex
from pathlib import Path
from string import Template

import click
import jsonschema
import msgspec
import pytest
import ray
import yaml
from ray.autoscaler._private.util import validate_config

from cluster import __version__
from cluster.cli.main import cli
from cluster.join import JoinDocument
from cluster.ray_storage import URL_VARIABLE
from cluster.settings import Settings, read_settings, settings_from, with_environment

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "config"
RAY_CLUSTER = jsonschema.Draft202012Validator(json.loads((ROOT / "tests/data/raycluster.schema.json").read_text()))
KUBERNETES = json.loads((ROOT / "tests/data/kubernetes.schema.json").read_text())
KINDS = [kind for kind in KUBERNETES["$defs"] if "." not in kind]
DOCUMENTS = list(yaml.safe_load_all((CONFIG / "kubernetes/prism.yaml").read_text()))


def one(kind):
    (found,) = (document for document in DOCUMENTS if document["kind"] == kind)
    return found


def pods():
    """Group name -> its pod template."""
    spec = one("RayCluster")["spec"]
    return {
        "head": spec["headGroupSpec"]["template"],
        **{group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]},
    }


def container(group):
    return pods()[group]["spec"]["containers"][0]


def parsed(line):
    """The command and options of a `prism ...` line, as the command itself would take them."""
    words = shlex.split(line)
    words = words[next(i for i, word in enumerate(words) if Path(word).name == "prism") + 1 :]
    command = cli.get_command(click.Context(cli), words[0])
    assert command is not None, line
    options, _, _ = command.make_parser(click.Context(command)).parse_args(words[1:])
    return words[0], options


LAUNCHERS = ("aws", "gcp")


def launcher(cloud):
    return (CONFIG / f"ray/{cloud}.yaml").read_text()


def prism_lines(text):
    return [line for part in text.splitlines() for line in part.split("&&") if re.search(r"(^|[/ ])prism \w", line)]


def test_the_ray_cluster_is_one_that_kuberay_accepts():
    RAY_CLUSTER.validate(one("RayCluster"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda spec: spec.update(headGroupSpecs={}),
        lambda spec: spec["autoscalerOptions"].update(idleTimeoutSeconds="soon"),
        lambda spec: spec["workerGroupSpecs"][0]["template"]["spec"].update(volume=[]),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0].update(readyProbe={}),
    ],
)
def test_the_schema_refuses_what_kuberay_would_refuse(spoil):
    cluster = json.loads(json.dumps(one("RayCluster")))
    spoil(cluster["spec"])
    with pytest.raises(jsonschema.ValidationError):
        RAY_CLUSTER.validate(cluster)


def as_kubernetes(document):
    """Raises: ValidationError if it is not what Kubernetes' own schema says of its kind."""
    assert document["kind"] in KINDS
    jsonschema.Draft202012Validator({**KUBERNETES, "$ref": f"#/$defs/{document['kind']}"}).validate(document)


def test_every_other_object_is_one_that_kubernetes_accepts():
    secret = yaml.safe_load(filled(CONFIG / "kubernetes/secrets.yaml"))
    found = [secret, *(document for document in DOCUMENTS if document["kind"] != "RayCluster")]
    assert sorted(document["kind"] for document in found) == sorted(KINDS)
    for document in found:
        as_kubernetes(document)


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("ConfigMap", lambda document: document["data"].update(port=8000)),
        ("Service", lambda document: document["spec"]["ports"][0].update(targetport="http")),
        ("Ingress", lambda document: document["spec"]["rules"][0]["http"]["paths"][0].pop("pathType")),
        ("PodDisruptionBudget", lambda document: document.update(apiVersion="policy/v1beta1")),
    ],
)
def test_the_schema_refuses_what_kubernetes_would_refuse(kind, spoil):
    spoilt = json.loads(json.dumps(one(kind)))
    spoil(spoilt)
    with pytest.raises(jsonschema.ValidationError):
        as_kubernetes(spoilt)


def test_the_settings_of_every_pod_are_accepted_and_are_the_ones_it_reads():
    files = one("ConfigMap")["data"]
    for text in files.values():
        settings_from(yaml.safe_load(text))
    for group in pods():
        (up,) = (parsed(line) for line in prism_lines(container(group)["args"][0]))
        name, options = up
        file = Template(options["config"]).substitute(GROUP=group)
        assert name == "up" and options["block"] and file.removeprefix("/etc/prism/settings/") in files
        assert options["node_ip"] == "$POD_IP"


def test_a_worker_joins_with_the_file_that_the_secret_holds():
    secret = yaml.safe_load(filled(CONFIG / "kubernetes/secrets.yaml"))
    document = msgspec.json.decode(secret["stringData"]["join.json"], type=JoinDocument, strict=True)
    head = settings_from(yaml.safe_load(one("ConfigMap")["data"]["head.yaml"]))
    assert document.prism == __version__
    assert document.address == f"{one('RayCluster')['metadata']['name']}-head-svc:{head.ray.port}"
    assert document.ray_token == secret["stringData"]["auth_token"] == "ray"
    assert (document.admin_token, document.wire_secret) == ("admin", "wire")
    assert document.store_url == secret["stringData"]["store-url"]
    assert document.artifacts_url == head.artifacts.url
    assert one("RayCluster")["spec"]["authOptions"]["secretName"] == secret["metadata"]["name"]


@pytest.mark.parametrize("url", ["redis://:y@ray-redis:6379", ""])
def test_a_head_pod_is_told_of_rays_own_redis_and_none_is_no_fault_tolerance(url):
    secret = yaml.safe_load(filled(CONFIG / "kubernetes/secrets.yaml", RAY_REDIS_URL=url))
    (variable,) = (found for found in container("head")["env"] if found["name"] == URL_VARIABLE)
    assert set(variable) == {"name", "valueFrom"}  # the password is nowhere but in the secret
    assert variable["valueFrom"]["secretKeyRef"]["name"] == secret["metadata"]["name"]
    told = secret["stringData"][variable["valueFrom"]["secretKeyRef"]["key"]]
    head = settings_from(yaml.safe_load(one("ConfigMap")["data"]["head.yaml"]))
    assert with_environment(head, {URL_VARIABLE: told}).ray.fault_tolerance_url == url
    assert told != secret["stringData"]["store-url"]
    assert URL_VARIABLE not in str([container(group) for group in ("cpu", "gpu")])
    # Beside it, KubeRay's own way would give Ray a second namespace; it refuses these variables without that way.
    assert "gcsFaultToleranceOptions" not in one("RayCluster")["spec"]
    assert not {"RAY_REDIS_ADDRESS", "REDIS_USERNAME"} & {found["name"] for found in container("head")["env"]}


def filled(file, **named):
    return Template(file.read_text()).substitute(
        RAY_TOKEN="ray",
        ADMIN_TOKEN="admin",
        WIRE_SECRET="wire",
        STORE_URL="redis://:x@redis:6379/0",
        ARTIFACTS_URL="s3://my-bucket/prism",
        **{"RAY_REDIS_URL": "", **named},
    )


@pytest.mark.parametrize("group", ["head", "cpu", "gpu"])
def test_a_pod_is_ready_exactly_while_its_gateway_is_healthy(group):
    gateway = container(group)
    http = next(port["containerPort"] for port in gateway["ports"] if port["name"] == "http")
    file = "head.yaml" if group == "head" else f"{group}.yaml"
    settings = settings_from(yaml.safe_load(one("ConfigMap")["data"][file]))
    assert gateway["readinessProbe"]["httpGet"] == {"path": "/-/healthz", "port": http}
    assert settings.http.port == http and settings.http.host == "0.0.0.0"
    assert (
        "livenessProbe" in gateway
    )  # else KubeRay puts one of its own there, which asks an agent Prism has no port for


def test_a_worker_is_drained_before_it_ends_and_has_the_time_for_it():
    for group in ("cpu", "gpu"):
        pod = pods()[group]["spec"]
        before_it_ends = container(group)["lifecycle"]["preStop"]["exec"]["command"][-1]
        ((name, options),) = (parsed(line) for line in prism_lines(before_it_ends))
        longest_s = Settings().gateway.max_deadline_s
        assert name == "drain"
        assert longest_s < float(options["timeout_s"]) < pod["terminationGracePeriodSeconds"]


def test_every_volume_that_is_mounted_is_there_and_the_selectors_find_the_pods():
    labels = one("Service")["spec"]["selector"]
    assert labels == one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    for group, pod in pods().items():
        assert labels.items() <= pod["metadata"]["labels"].items()
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for mount in container(group)["volumeMounts"]} <= volumes


def test_groups_are_labelled_for_ray_as_they_are_for_kuberays_autoscaler():
    for group in one("RayCluster")["spec"]["workerGroupSpecs"]:
        settings = settings_from(yaml.safe_load(one("ConfigMap")["data"][f"{group['groupName']}.yaml"]))
        assert settings.ray.labels == group["labels"]
        assert not settings.ray.idle_gateway  # an idle gateway would keep the node from being taken away


def test_the_head_knows_that_kuberay_adds_nodes():
    head = settings_from(yaml.safe_load(one("ConfigMap")["data"]["head.yaml"]))
    assert head.ray.grows is one("RayCluster")["spec"]["enableInTreeAutoscaling"]


def test_the_gpu_group_asks_for_gpus_and_the_others_do_not():
    limits = {group: container(group)["resources"]["limits"] for group in pods()}
    assert {group for group, limit in limits.items() if limit.get("nvidia.com/gpu")} == {"gpu"}


def test_versions_are_those_of_this_prism_and_its_ray():
    assert one("RayCluster")["spec"]["rayVersion"] == ray.__version__
    for group in pods():
        assert container(group)["image"].split(":")[1].removesuffix("-gpu") == __version__
    for cloud in LAUNCHERS:
        assert re.findall(r"prism_serving-([\d.]+)-py3-none-any\.whl", launcher(cloud)) == [__version__]


@pytest.mark.parametrize("cloud", LAUNCHERS)
def test_the_launchers_file_is_one_that_ray_accepts(cloud):
    cluster = yaml.safe_load(launcher(cloud))
    assert cluster["provider"]["type"] == cloud
    validate_config({**cluster, "cluster_synced_files": []})
    with pytest.raises(jsonschema.ValidationError):
        validate_config({**cluster, "cluster_synced_files": [], "worker_nodes_of_mine": {}})


@pytest.mark.parametrize("cloud", LAUNCHERS)
def test_the_launchers_commands_are_ones_that_prism_understands(cloud):
    cluster = yaml.safe_load(launcher(cloud))
    lines = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    commands = [parsed(line) for line in lines if re.search(r"/prism \w", line)]
    assert [name for name, _ in commands] == ["down", "up", "down", "up"]
    head, worker = commands[1][1], commands[3][1]
    head_settings = read_settings(CONFIG / "ray" / Path(head["config"]).name)
    worker_settings = read_settings(CONFIG / "ray" / Path(worker["config"]).name)
    assert worker["address"] == f"$RAY_HEAD_IP:{head_settings.ray.port}"
    assert head_settings.ray.autoscaling_config and not worker_settings.ray.idle_gateway


def test_what_the_launcher_uploads_is_a_folder_of_its_own_that_the_docs_fill():
    text = (ROOT / "docs/placement.md").read_text()
    (block,) = (found for found in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "pip wheel" in found)
    made = set(re.findall(r"prism-cluster/([\w./-]+)", block))
    copied = re.search(r"^cp (.*) prism-cluster/$", block, re.MULTILINE)
    made |= {Path(file).name for file in copied[1].split() if (ROOT / file).is_file()}
    for cloud in LAUNCHERS:
        cluster = yaml.safe_load(launcher(cloud))
        assert list(cluster["file_mounts"].values()) == [
            "prism-cluster"
        ]  # never the checkout, nor where one happens to be
        (mount,) = cluster["file_mounts"]
        commands = "\n".join(line for name, lines in cluster.items() if name.endswith("_commands") for line in lines)
        used = set(re.findall(rf"\$HOME/{Path(mount).name}/([\w.-]+)", commands))
        wheels = {file for file in used if file.endswith(".whl")}
        assert len(wheels) == 1 and "pip wheel . --no-deps -w prism-cluster" in block
        assert used - wheels <= {file.split("/")[0] for file in made}
        assert used >= {"settings.yaml", "worker.yaml", "join.json", "secrets", "constraints.txt"}
    assert {f"secrets/{name}" for name in ("ray-token", "admin-token", "wire-secret")} <= made
    document = msgspec.json.decode(filled(CONFIG / "ray/join.json"), type=JoinDocument, strict=True)
    assert document.prism == __version__
    assert (document.ray_token, document.admin_token, document.wire_secret) == ("ray", "admin", "wire")


def test_nothing_that_ships_installs_prism_by_its_name_from_an_index():
    files = [*CONFIG.rglob("*"), *(ROOT / "docs").rglob("*.md"), *(ROOT / name for name in ("README.md", "Dockerfile"))]
    read = [file for file in files if file.is_file() and file.suffix in ("", ".md", ".yaml", ".json")]
    texts = {file: file.read_text() for file in read}
    assert sum("pip install" in text for text in texts.values()) > 5
    named = re.compile(r"pip3? install[^`\n]*[\s'\"]prism[-_]serving(?!-[\d.]+-py3-none-any\.whl)")
    assert [file.name for file, text in texts.items() if named.search(text)] == []


def test_prometheus_scrapes_the_gateways_own_path():
    config = yaml.safe_load((CONFIG / "prometheus/prometheus.yaml").read_text())
    known = {"job_name", "metrics_path", "static_configs", "kubernetes_sd_configs", "relabel_configs"}
    for job in config["scrape_configs"]:
        assert set(job) <= known and job.get("metrics_path", "/metrics") == "/metrics"
    (pod_job,) = (job for job in config["scrape_configs"] if "kubernetes_sd_configs" in job)
    label, value = next(iter(one("Service")["spec"]["selector"].items()))
    source = "__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", label)
    assert {"source_labels": [source], "regex": value, "action": "keep"} in pod_job["relabel_configs"]
