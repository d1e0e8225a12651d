from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest
from gateway_fakes import ECHO, FakeArm, FakeRoutes, record_of, serving

from cluster.documents import ModelDocument, VersionStatus
from cluster.settings import Settings
from cluster.store.memory import MemoryStore
from deployments.gateway.app import build_app
from deployments.gateway.inference import role_of
from deployments.metrics import Metrics

tritonclient = pytest.importorskip("tritonclient.http")

TOKEN = "s3cret-token"


@dataclass
class Running:
    routes: FakeRoutes
    metrics: Metrics
    store: MemoryStore
    server: Any
    port: int

    async def call(
        self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str
    ) -> tuple[int, Any, dict[str, str]]:
        """(status, body, headers); the body as a value where it is JSON."""
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        raw = json.dumps(body).encode() if isinstance(body, (dict, list)) else body

        def ask() -> tuple[int, Any, dict[str, str]]:
            connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request(method, path, raw, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = connection.getresponse()
            said: Any = answer.read()
            if answer.headers.get_content_type() == "application/json" and said:
                said = json.loads(said)
            connection.close()
            return answer.status, said, {name.lower(): value for name, value in answer.getheaders()}

        return await asyncio.to_thread(ask)

    async def triton(self, ask: Callable[[Any], Any]) -> Any:
        def run() -> Any:
            client = tritonclient.InferenceServerClient(f"127.0.0.1:{self.port}")
            try:
                return ask(client)
            finally:
                client.close()

        return await asyncio.to_thread(run)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    routes, metrics, store = FakeRoutes(labels=("cat", "dog")), Metrics("g1"), MemoryStore()
    app = build_app(routes, metrics, Settings(), store, TOKEN)
    async with serving(app, routes, metrics) as (server, port):
        yield Running(routes, metrics, store, server, port)


def rows(n: int) -> Any:
    tensor = tritonclient.InferInput("x", [n, 4], "FP32")
    tensor.set_data_from_numpy(np.arange(4 * n, dtype="f4").reshape(n, 4))
    return tensor


async def test_tritonclient_infers_unmodified(running: Running) -> None:
    x = rows(2)
    outputs = [tritonclient.InferRequestedOutput("y", binary_data=False)]

    def ask(client: Any) -> list[Any]:
        return [
            client.infer("m", [x]),
            client.infer("m", [x], model_version="2", request_id="7", outputs=outputs, timeout=5_000_000, priority=1),
            client.infer("m", [x], request_compression_algorithm="gzip"),
            client.infer("m", [x], outputs=[tritonclient.InferRequestedOutput("y", class_count=1)]),
        ]

    plain, second, packed, classes = await running.triton(ask)
    values = np.arange(8, dtype="f4").reshape(2, 4)
    assert plain.as_numpy("y").tolist() == values.tolist()
    assert second.as_numpy("y").tolist() == (values * 2).tolist()
    assert second.get_response()["id"] == "7" and second.get_response()["model_version"] == "2"
    assert packed.as_numpy("y").tolist() == values.tolist()
    assert classes.as_numpy("y").tolist() == [[b"3.000000:3"], [b"7.000000:3"]]


async def test_tritonclient_reads_health_metadata_index_and_statistics(running: Running) -> None:
    def ask(client: Any) -> list[Any]:
        client.infer("m", [rows(3)])
        return [
            client.is_server_live(),
            client.is_server_ready(),
            client.is_model_ready("m"),
            client.is_model_ready("m", "2"),
            client.is_model_ready("asleep"),
            client.is_model_ready("none"),
            client.get_server_metadata(),
            client.get_model_metadata("m"),
            client.get_model_config("m"),
            client.get_model_repository_index(),
            client.get_inference_statistics("m", "1"),
            client.get_inference_statistics(),
        ]

    answers = await running.triton(ask)
    assert answers[:6] == [True, True, True, True, False, False]
    server, model, config, index, one, everything = answers[6:]
    assert server["name"] == "prism" and "binary_tensor_data" in server["extensions"]
    assert model["versions"] == ["1", "2"]
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert config["max_batch_size"] == 16 and config["input"][0] == {"name": "x", "data_type": "TYPE_FP32", "dims": [4]}
    assert {(entry["name"], entry["version"], entry["state"]) for entry in index} == {
        ("asleep", "1", "UNAVAILABLE"),
        ("m", "1", "READY"),
        ("m", "2", "READY"),
    }
    stats = one["model_stats"][0]
    assert (stats["inference_count"], stats["execution_count"]) == (3, 1)
    assert stats["inference_stats"]["success"]["count"] == 1 and stats["last_inference"] > 0
    assert [entry["version"] for entry in everything["model_stats"]] == ["1", "2"]


async def test_tritonclient_is_told_why_not(running: Running) -> None:
    def ask(client: Any) -> str:
        try:
            client.infer("none", [rows(1)])
        except tritonclient.InferenceServerException as error:
            return f"{error.status()} {error.message()}"
        return ""

    assert await running.triton(ask) == "404 there is no model 'none'"


async def test_a_model_is_not_ready_while_a_version_with_traffic_is_not(running: Running) -> None:
    running.routes.arms_["m", "2"].ready = False
    assert (await running.call("GET", "/v2/models/m/ready"))[0] == 200
    assert (await running.call("GET", "/v2/models/m/labels/canary/ready"))[0] == 400
    running.routes.arms_["m", "1"].ready = False
    assert (await running.call("GET", "/v2/models/m/ready"))[0] == 400
    assert (await running.call("GET", "/v2/health/ready"))[0] == 400
    assert (await running.call("GET", "/v2/health/live"))[0] == 200


async def test_a_version_at_zero_is_ready_until_it_cannot_be_started(running: Running) -> None:
    running.routes.arms_["m", "1"].connected = 0
    assert (await running.call("GET", "/v2/models/m/ready"))[0] == 200
    running.routes.states["1"] = "FAILED"
    assert (await running.call("GET", "/v2/models/m/ready"))[0] == 400
    running.routes.arms_["m", "1"].connected = 1  # a replica of before still answers
    assert (await running.call("GET", "/v2/models/m/ready"))[0] == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v2/models/none", 404),
        ("GET", "/v2/models/m/versions/9", 404),
        ("GET", "/v2/models/m/versions/x", 400),
        ("GET", "/v2/models/..%2Fm", 404),
        ("GET", "/v2/models/%2e%2e/ready", 400),
        ("GET", "/v2/models/m/infer", 405),
        ("DELETE", "/metrics", 405),
        ("POST", "/v2/repository/models/m/load", 400),
    ],
)
async def test_errors_are_the_protocols(running: Running, method: str, path: str, status: int) -> None:
    got, body, headers = await running.call(method, path)
    assert got == status and isinstance(body["error"], str)
    assert ("allow" in headers) == (status == 405)


async def test_head_answers_like_get_without_a_body(running: Running) -> None:
    status, body, headers = await running.call("HEAD", "/v2")
    assert (status, body) == (200, b"") and int(headers["content-length"]) > 0


async def test_load_balancers_and_ray_see_what_they_expect(running: Running) -> None:
    assert (await running.call("GET", "/-/healthz"))[:2] == (200, b"success")
    assert (await running.call("GET", "/-/routes"))[0] == 200


async def test_a_draining_gateway_says_so_on_connections_that_are_open(running: Running) -> None:
    connection = HTTPConnection("127.0.0.1", running.port, timeout=5)
    await asyncio.to_thread(connection.connect)
    draining = asyncio.create_task(running.server.drain(2.0))
    await asyncio.sleep(0)

    def ask() -> tuple[int, str | None]:
        connection.request("GET", "/-/healthz")
        answer = connection.getresponse()
        return answer.status, answer.getheader("connection")

    assert await asyncio.to_thread(ask) == (503, "close")
    assert await draining


async def test_a_gateway_that_will_leave_fails_health_checks_and_still_answers_whoever_comes(running: Running) -> None:
    running.server.announce_leaving()
    assert (await running.call("GET", "/-/healthz"))[0] == 503
    status, _, headers = await running.call("GET", "/v2/models/m")
    assert (status, headers["connection"]) == (200, "close")
    await running.triton(lambda client: client.infer("m", [rows(1)]))
    running.server.check()


async def test_metrics_are_prometheus_text(running: Running) -> None:
    await running.triton(lambda client: client.infer("m", [rows(1)]))
    status, text, headers = await running.call("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain; version=")
    assert b'prism_requests_total{arm="stable",gateway="g1",model="m",status="200",version="1"} 1.0' in text
    assert b'prism_replicas{arm="canary",gateway="g1",model="m",version="2"} 1.0' in text
    assert b'prism_replicas_answered{arm="canary",gateway="g1",model="m",version="2"} 0.0' in text
    assert b'prism_replicas_wanted{arm="stable",gateway="g1",model="m",version="1"} 3.0' in text
    assert b"prism_replicas_granted{" not in text  # nothing holds it
    assert b'prism_gateway_info{gateway="g1"} 1.0' in text


async def test_the_overview_needs_no_token_and_shows_wanted_and_seen(running: Running) -> None:
    await running.triton(lambda client: client.infer("m", [rows(2)]))
    status, body, _ = await running.call("GET", "/api/v1/overview")
    assert status == 200 and body["gateway"] == "g1"
    model = next(model for model in body["models"] if model["name"] == "m")
    assert model["split"] == {"1": 10000} and model["labels"] == {"stable": "1", "canary": "2"}
    first = model["versions"][0]
    assert (first["state"], first["connected"], first["labels"]) == ("READY", 1, ["stable"])
    assert first["counts"]["status"] == {"200": 1} and sum(first["counts"]["request_buckets"]) == 1
    assert first["counts"]["batch_rows"] == 2


async def test_the_page_is_whole_without_any_other_host(running: Running) -> None:
    status, page, headers = await running.call("GET", "/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert b"page.css" in page and b"page.js" in page and b"http://" not in page and b"https://" not in page
    assert "default-src 'self'" in headers["content-security-policy"]
    for name in ("page.css", "page.js"):
        status, body, _ = await running.call("GET", "/" + name)
        assert status == 200 and len(body) > 500 and b"https://" not in body


# The control API, on a store of its own.


@pytest.fixture
def stored(running: Running) -> Running:
    records = {version: record_of(version) for version in ("1", "2")}
    running.store.swap(ModelDocument("m", records, None, {}, 3), "publish", "test")
    running.store.report(
        "m", {v: VersionStatus(v, "READY", "", 1, 1, True, record.digest) for v, record in records.items()}
    )
    return running


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", TOKEN.upper()])
async def test_nobody_without_the_token_gets_in(
    stored: Running, token: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        for method, path in (
            ("GET", "/api/v1/models"),
            ("GET", "/api/v1/models/m"),
            ("GET", "/api/v1/models/m/history"),
            ("POST", "/api/v1/models/m/promote"),
        ):
            status, body, headers = await stored.call(method, path, token=token)
            assert status == 401 and headers["www-authenticate"] == "Bearer" and "Bearer TOKEN" in body["error"]
    assert TOKEN not in caplog.text
    assert stored.store.read("m").split is None


async def test_an_empty_admin_token_lets_nobody_in() -> None:
    routes = FakeRoutes()
    app = build_app(routes, Metrics(), Settings(), MemoryStore(), "")
    async with serving(app, routes) as (server, port):
        alone = Running(routes, Metrics(), MemoryStore(), server, port)
        assert (await alone.call("GET", "/api/v1/models", token=""))[0] == 401


async def test_an_operator_moves_traffic_and_back(stored: Running) -> None:
    async def post(verb: str, **body: Any) -> dict[str, Any]:
        status, said, headers = await stored.call("POST", f"/api/v1/models/m/{verb}", body, TOKEN)
        assert status == 200, said
        assert headers["etag"] == f'"{said["document"]["revision"]}"'
        return said["document"]

    assert (await post("promote", version="1", by="ann", reason="first"))["labels"] == {"stable": "1"}
    document = await post("split", percent={"1": 90, "2": 10})
    assert {arm["version"]: arm["share_bp"] for arm in document["split"]["arms"]} == {"1": 9000, "2": 1000}
    assert (await post("label", label="canary", version="2"))["labels"]["canary"] == "2"
    assert "canary" not in (await post("label", label="canary"))["labels"]
    assert (await post("promote", version="2"))["labels"]["stable"] == "2"
    assert (await post("rollback"))["labels"]["stable"] == "1"
    assert (await post("scale", version="1", max_replicas=3))["versions"]["1"]["deploy"]["max_replicas"] == 3
    assert (await post("undeploy", version="2", force=True))["versions"]["2"]["deploy"] is None
    document = await post("deploy", version="2", settings={"max_replicas": 2})
    assert document["versions"]["2"]["deploy"]["max_replicas"] == 2
    status, body, _ = await stored.call("GET", "/api/v1/models/m/history?limit=20", token=TOKEN)
    assert status == 200
    assert [entry["by"] for entry in body["entries"]][-2:] == ["ann", "test"]


async def test_one_setting_is_judged_together_with_those_that_stay(stored: Running) -> None:
    async def deploy(**settings: Any) -> tuple[int, Any, Any]:
        return await stored.call("POST", "/api/v1/models/m/deploy", {"version": "1", "settings": settings}, TOKEN)

    assert (await deploy(max_replicas=4))[0] == 200
    status, body, _ = await deploy(min_replicas=2)
    assert status == 200 and body["document"]["versions"]["1"]["deploy"]["min_replicas"] == 2
    status, body, _ = await deploy(min_replicas=5)
    assert status == 400 and "deploy.min_replicas: expected 0 to max_replicas, got 5" in body["error"]


async def test_reading_shows_documents_with_their_statuses(stored: Running) -> None:
    status, body, _ = await stored.call("GET", "/api/v1/models", token=TOKEN)
    assert status == 200 and [model["name"] for model in body["models"]] == ["m"]
    status, body, headers = await stored.call("GET", "/api/v1/models/m", token=TOKEN)
    assert body["document"]["revision"] == 1 and body["statuses"]["2"]["state"] == "READY"
    assert headers["etag"] == '"1"'


async def test_a_change_to_another_revision_is_refused_with_the_present_one(stored: Running) -> None:
    async def promote(if_match: str) -> tuple[int, Any, Any]:
        return await stored.call("POST", "/api/v1/models/m/promote", {"version": "1"}, TOKEN, If_Match=if_match)

    status, body, headers = await promote('"7"')
    assert status == 409 and body["current"]["revision"] == 1 and headers["etag"] == '"1"'
    assert stored.store.read("m").split is None
    assert (await promote('"1"'))[0] == 200
    assert (await promote("yesterday"))[0] == 400


@pytest.mark.parametrize(
    ("verb", "body", "status", "said"),
    [
        ("split", {"percent": {"1": 90}}, 400, "add up"),
        ("split", {"percent": {"1": "x"}}, 400, "percent"),
        ("split", {"percent": {"one": 100}}, 400, "version"),
        ("split", {"percent": {"1": 1e300}}, 400, "basis points"),
        ("split", {}, 400, "percent"),
        ("promote", {"version": "9"}, 404, "9"),
        ("promote", {"version": "1", "now": True}, 400, "now"),
        ("promote", [], 400, "object"),
        ("promote", b"\xff", 400, "JSON"),
        ("deploy", {"settings": {"replicas": 3}}, 400, "settings.replicas: unknown"),
        ("deploy", {"settings": {"max_replicas": "3"}}, 400, "settings.max_replicas: expected int"),
        ("deploy", {"settings": {"max_replicas": 0}}, 400, "max_replicas"),
        ("rollback", {}, 409, ""),
        ("undeploy", {"version": "1", "reason": "x" * 2000}, 400, "reason"),
        ("label", {"label": "Big", "version": "1"}, 400, "label"),
    ],
)
async def test_a_wrong_change_is_refused_by_name(stored: Running, verb: str, body: Any, status: int, said: str) -> None:
    got, answer, _ = await stored.call("POST", f"/api/v1/models/m/{verb}", body, TOKEN)
    assert got == status and said in answer["error"]
    assert stored.store.read("m").revision == 1


async def test_unknown_models_are_not_found(stored: Running) -> None:
    assert (await stored.call("GET", "/api/v1/models/none", token=TOKEN))[0] == 404
    assert (await stored.call("POST", "/api/v1/models/none/promote", {"version": "1"}, TOKEN))[0] == 404
    assert (await stored.call("GET", "/api/v1/models/m/history?limit=-1", token=TOKEN))[0] == 400


async def test_the_api_describes_itself(running: Running) -> None:
    status, api, _ = await running.call("GET", "/api/v1/openapi.json")
    assert status == 200 and api["openapi"].startswith("3.1")
    assert set(api["paths"]["/api/v1/models/{model}/split"]) == {"parameters", "post"}

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [ref for child in node.values() for ref in references(child)]
        return [ref for child in node for ref in references(child)] if isinstance(node, list) else []

    names = {ref.rsplit("/", 1)[1] for ref in references(api)}
    assert names and names <= set(api["components"]["schemas"])


def test_the_fake_arm_is_one() -> None:
    arm = FakeArm(record_of("1", ECHO))
    assert arm.record.signature is ECHO
    assert role_of(FakeRoutes().documents["m"], "2") == "canary"
