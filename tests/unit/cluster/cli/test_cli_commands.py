"""Commands on a memory store: what they change, what they print, and how they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from cluster import operations
from cluster.artifacts_store import ArtifactStore
from cluster.cli.main import COMMANDS, cli, main
from cluster.cli.serve import model_name
from cluster.cli.session import Session
from cluster.cli.up import merged
from cluster.documents import DeploySettings, VersionStatus, spec_of
from cluster.errors import Conflict, InvalidRequest, ModelNotFound, OperatorError, ServingError
from cluster.names import Target
from cluster.settings import Boot, HttpSettings, Settings
from cluster.store.follow import Follower
from cluster.store.memory import MemoryStore
from onnx_models import mlp_artifact


class ReadyStore(MemoryStore):
    """A memory store with a controller that reports the same state for whatever is deployed.

    With `reports`, it reports these instead, one a look, and then the last one again and again.
    """

    state, reason = "READY", ""

    def __init__(self):
        super().__init__()
        self.reports = []

    def statuses(self, model):
        report = {"state": self.state, "reason": self.reason}
        if self.reports:
            report |= self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]
        return {
            version: VersionStatus(
                **{
                    "version": version,
                    "replicas": 1,
                    "target_replicas": 1,
                    "ready_once": report["state"] == "READY",
                    "digest": record.digest,
                    "spec": spec_of(record),
                    "at_s": 4e9,
                }
                | report
            )
            for version, record in self.read(model).versions.items()
            if record.deploy is not None
        }

    def wait(self, timeout_s):
        return super().wait(min(timeout_s, 0.001))

    def lose_everything(self):
        MemoryStore.__init__(self)


@pytest.fixture
def session(tmp_path):
    boot = Boot(
        str(tmp_path), "", "", "redis://:secret@h:1/0", str(tmp_path / "a"), "", "admin", "wire", 1, 2, Settings()
    )
    return Session(boot, ReadyStore(), ArtifactStore(str(tmp_path / "a"), tmp_path / "cache"), "ada")


@pytest.fixture
def prism(session):
    def prism(*arguments):
        """The command's JSON value; its error is raised."""
        done = CliRunner().invoke(cli, [*arguments, "--json"], obj=session)
        if isinstance(done.exception, ServingError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return prism


@pytest.fixture
def published(prism, tmp_path):
    """Two published versions of `m`."""
    for seed in (1, 2):
        prism("publish", "m", str(mlp_artifact(tmp_path / str(seed), seed=seed).path))


def test_a_version_goes_from_published_to_deployed_to_traffic(prism, published, session):
    assert prism("deploy", "m:1", "--min", "1", "--max", "3", "--max-wait-ms", "2")["state"] == "READY"
    document = session.store.read("m")
    assert document.split.share_bp("1") == 10_000
    assert (document.versions["1"].deploy.max_replicas, document.versions["1"].deploy.max_wait_s) == (3, 0.002)


def test_what_a_deploy_does_not_name_stays_as_it_was(prism, published, session):
    prism("deploy", "m:1", "--cpus", "2", "--max", "4")
    prism("deploy", "m:1", "--max", "5")
    deploy = session.store.read("m").versions["1"].deploy
    assert (deploy.num_cpus, deploy.max_replicas) == (2, 5)


def test_without_a_version_the_newest_is_deployed(prism, published):
    assert prism("deploy", "m")["version"] == "2"


def test_a_second_version_takes_no_traffic_by_itself(prism, published):
    prism("deploy", "m:1")
    assert prism("deploy", "m:2")["share_bp"] == 0
    assert prism("deploy", "m:2", "--take-traffic")["share_bp"] == 10_000


def test_no_traffic_means_none_even_for_the_first(prism, published):
    assert prism("deploy", "m:1", "--no-traffic")["share_bp"] == 0


def test_a_failed_version_fails_the_command_with_its_reason(prism, published, session):
    session.store.state, session.store.reason = "FAILED", "model.onnx: expected SHA-256"
    with pytest.raises(OperatorError, match=r"m:1 FAILED: model\.onnx: expected SHA-256"):
        prism("deploy", "m:1")
    assert session.store.read("m").split is None


def test_a_version_that_never_gets_ready_is_given_up_in_time(prism, published, session):
    session.store.state = "LOADING"
    with pytest.raises(OperatorError, match=r"not READY within 0\.01 s: is LOADING"):
        prism("deploy", "m:1", "--timeout", "0.01")


def test_a_deploy_waits_until_no_replica_runs_what_was_before(prism, published, session):
    prism("deploy", "m:1")
    session.store.reports = [{"spec": ""}, {"spec": ""}, {"state": "LOADING", "spec": ""}, {"replicas": 4}]
    assert prism("deploy", "m:1", "--max", "5")["replicas"] == 4
    session.store.reports = [{"spec": ""}]
    with pytest.raises(OperatorError, match="is READY, 1 of 1 replicas, but not yet with these settings everywhere"):
        prism("deploy", "m:1", "--max", "6", "--timeout", "0.01")


def test_a_deploy_tells_how_far_it_is_and_each_reason_once(published, session):
    session.store.reports = [
        {"state": "DEGRADED", "reason": "no memory", "spec": "", "replicas": 1, "target_replicas": 2},
        {"state": "DEGRADED", "reason": "no memory", "spec": "", "replicas": 1, "target_replicas": 2},
        {"state": "DEGRADED", "reason": "no memory", "spec": "", "replicas": 0, "target_replicas": 2},
        {"spec": "", "replicas": 1, "target_replicas": 2},
        {"replicas": 2, "target_replicas": 2},
    ]
    told = CliRunner().invoke(cli, ["deploy", "m:1", "--no-traffic"], obj=session).stdout.splitlines()
    assert told == [
        "m:1 is DEGRADED, 1 of 2 replicas: no memory",
        "m:1 is DEGRADED, 0 of 2 replicas",
        "m:1 is READY, 1 of 2 replicas; being changed",
        "m:1 is READY, 2 of 2 replicas",
    ]


def test_a_failure_from_before_the_deploy_is_not_its_own(prism, published, session):
    session.store.reports = [{"state": "FAILED", "reason": "old", "spec": "", "at_s": 1.0}, {}]
    assert prism("deploy", "m:1")["state"] == "READY"


def test_a_version_undeployed_by_somebody_is_not_waited_for(prism, published, session):
    session.store.reports = [{"spec": ""}]
    session.store.wait = lambda _: operations.undeploy(session.store, Target("m", "1"), by="bob")
    with pytest.raises(OperatorError, match="was undeployed meanwhile"):
        prism("deploy", "m:1")


def test_no_wait_returns_while_it_is_loading(prism, published, session):
    session.store.state = "LOADING"
    assert prism("deploy", "m:1", "--no-wait")["state"] == "LOADING"


def test_split_promote_and_rollback_move_traffic(prism, published):
    prism("deploy", "m:1")
    prism("deploy", "m:2")
    assert prism("split", "m", "1=90,2=10")["split"] == {"1": 90.0, "2": 10.0}
    assert prism("promote", "m:2")["labels"] == {"stable": "2"}
    assert prism("rollback", "m")["split"] == {"1": 90.0, "2": 10.0}


def test_each_rollout_begins_with_other_keys(prism, published, session):
    prism("deploy", "m:1")
    prism("deploy", "m:2")
    prism("split", "m", "1=90,2=10")
    first = session.store.read("m").split.salt
    prism("split", "m", "1=80,2=20")
    assert session.store.read("m").split.salt == first
    prism("split", "m", "1=100")
    prism("split", "m", "1=90,2=10")
    assert session.store.read("m").split.salt != first


def test_the_history_says_who_what_and_why(prism, published):
    prism("deploy", "m:1")
    prism("deploy", "m:2")
    prism("split", "m", "1=50,2=50", "--reason", "try it")
    newest = prism("history", "m", "--limit", "1")["entries"][0]
    assert (newest["operation"], newest["by"], newest["reason"]) == ("split", "ada", "try it")
    assert newest["deployed"] == ["1", "2"]


def test_a_label_is_set_and_removed(prism, published):
    prism("deploy", "m:2")
    assert prism("label", "m@canary", "2")["labels"]["canary"] == "2"
    assert "canary" not in prism("label", "m@canary", "--remove")["labels"]


def test_a_label_needs_a_label(prism, published):
    with pytest.raises(InvalidRequest, match="MODEL@LABEL"):
        prism("label", "m:1", "2")


def test_undeploy_without_a_version_means_the_same_as_the_document_says(prism, published, session):
    prism("deploy", "m:1")
    prism("deploy", "m:2")
    assert prism("undeploy", "m:2")["version"] == "2"
    assert session.store.read("m").versions["2"].deploy is None


def test_scale_changes_only_the_bound_it_names(prism, published, session):
    prism("deploy", "m:1", "--max", "3", "--queue-rows", "2048")
    facts = prism("scale", "m:1", "--min", "2", "--reason", "noon")
    assert (facts["min_replicas"], facts["max_replicas"]) == (2, 3)
    assert session.store.read("m").versions["1"].deploy == DeploySettings(2, 3, max_queue_rows=2048)
    assert session.store.history("m", 1)[0].reason == "noon"
    assert CliRunner().invoke(cli, ["scale", "m:1"], obj=session).exit_code == 2


def test_a_version_that_is_not_needed_is_unpublished_and_one_that_is_deployed_is_not(prism, published, session):
    prism("deploy", "m:1")
    with pytest.raises(Conflict, match="undeploy it first"):
        prism("unpublish", "m:1")
    assert prism("unpublish", "m:2")["version"] == "2"
    assert set(session.store.read("m").versions) == {"1"}


def test_a_model_is_removed_and_by_force_also_while_it_is_deployed(prism, published, session):
    prism("deploy", "m:1")
    with pytest.raises(Conflict, match="--force"):
        prism("remove", "m")
    assert prism("remove", "m", "--force", "--reason", "over") == {"model": "m", "removed": True}
    assert session.store.models() == () and session.store.history("m", 1)[0].reason == "over"


def test_status_shows_every_model_and_never_the_stores_password(prism, published, session):
    prism("deploy", "m:1")
    facts = prism("status")
    (model,) = facts["models"]
    assert [v["state"] for v in model["versions"]] == ["READY", "REGISTERED"]
    assert "secret" not in json.dumps(facts)
    text = CliRunner().invoke(cli, ["status"], obj=session).stdout
    assert "DOES NOT ANSWER" in text and "READY" in text and "secret" not in text


def test_status_warns_of_a_store_that_may_lose_a_commit(prism, published, session):
    session.store.durability_warnings = lambda: ("appendonly is off",)
    assert prism("status")["store"]["warnings"] == ["appendonly is off"]
    assert "warning  appendonly is off\n" in CliRunner().invoke(cli, ["status"], obj=session).stdout


def test_unknown_names_are_not_found(prism, published):
    for command in (["deploy", "m:9"], ["split", "nosuch", "1=100"], ["infer", "nosuch"], ["status", "nosuch"]):
        with pytest.raises(ModelNotFound):
            prism(*command)


def test_publishing_a_file_says_what_to_do_instead(prism, tmp_path):
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InvalidRequest, match="prism serve"):
        prism("publish", "m", str(tmp_path / "model.onnx"))


def test_infer_refuses_inputs_the_model_does_not_have(prism, published, tmp_path):
    prism("deploy", "m:1")
    np.savez(tmp_path / "in.npz", z=np.zeros((1, 4), np.float32))
    with pytest.raises(InvalidRequest, match="inputs: expected x; got z"):
        prism("infer", "m", "--input", str(tmp_path / "in.npz"))


def test_infer_without_a_gateway_is_one_clear_line(prism, published):
    prism("deploy", "m:1")
    with pytest.raises(OperatorError, match="does not answer"):
        prism("infer", "m")


@pytest.fixture
def emptied(prism, published, session):
    """What a controller has read of `m`, and then the store came back without it."""
    prism("deploy", "m:1")
    Follower(session.store, Path(session.boot.home) / "controller.json").poll()
    session.store.lose_everything()
    return session.store


def test_status_tells_that_the_store_lost_data_and_changes_are_refused_in_one_line(prism, emptied, session, tmp_path):
    assert "another data set" in prism("status")["store"]["regressed"]
    assert "regressed: it is another data set" in CliRunner().invoke(cli, ["status"], obj=session).stdout
    for command in (["publish", "m", str(tmp_path / "1")], ["deploy", "m:1"], ["split", "m", "1=100"], ["remove", "m"]):
        with pytest.raises(OperatorError, match=r"lost data.*another data set.*prism store restore.*prism store adopt"):
            prism(*command)
    assert emptied.models() == ()


def test_what_was_served_is_restored_with_an_entry_in_the_history(prism, emptied):
    assert prism("store", "restore", "--reason", "the disk broke") == {"written": ["m"], "as_it_was": []}
    assert prism("status")["store"]["regressed"] == ""
    newest = prism("history", "m")["entries"][0]
    assert (newest["operation"], newest["by"], newest["reason"]) == ("restore", "ada", "the disk broke")
    assert newest["split"] == {"1": 100.0}
    assert prism("deploy", "m:1")["state"] == "READY"


def test_an_adopted_store_is_true_and_what_was_known_can_still_be_restored(prism, emptied):
    facts = prism("store", "adopt")
    assert facts["adopted"] and facts["models"] == [] and "another data set" in facts["why"]
    assert prism("status")["store"]["regressed"] == "" and prism("status")["models"] == []
    assert prism("store", "restore", facts["before"])["written"] == ["m"]


def test_a_backup_is_written_once_and_restored_over_later_changes(prism, published, tmp_path):
    file = str(tmp_path / "state.backup")
    assert prism("store", "backup", file)["models"] == ["m"]
    with pytest.raises(OperatorError, match="there already"):
        prism("store", "backup", file)
    prism("deploy", "m:1")
    assert prism("store", "restore", file)["written"] == ["m"]
    assert prism("history", "m")["entries"][0]["deployed"] == []


def test_a_store_that_lost_nothing_is_neither_adopted_nor_restored_by_mistake(prism, published, session):
    Follower(session.store, Path(session.boot.home) / "controller.json").poll()
    assert prism("store", "adopt") == {"adopted": False}
    with pytest.raises(OperatorError, match="has lost nothing"):
        prism("store", "restore")
    assert session.store.sanctioned() == 0


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("demo", "loadtest")])
def test_every_command_explains_itself_with_an_example(command):
    done = CliRunner().invoke(cli, [command, "--help"])
    assert done.exit_code == 0
    assert "Example" in done.stdout and "--json" in done.stdout


@pytest.mark.parametrize("command", ["status", "history m", "deploy m:1", "split m 1=100", "infer m"])
def test_with_nothing_running_the_error_says_how_to_start(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["prism", *command.split(), "--home", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: nothing is running in") and "prism up --home" in error
    assert len(error.splitlines()) == 1


def test_an_error_is_json_when_json_was_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["prism", "status", "--json", "--home", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(capsys.readouterr().err)["error"] == "OperatorError"


def test_wrong_usage_is_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["prism", "split", "m"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2


def test_down_with_nothing_running_says_so_and_succeeds(tmp_path):
    done = CliRunner().invoke(cli, ["down", "--home", str(tmp_path)])
    assert done.exit_code == 0
    assert "nothing is running" in done.stdout


def test_options_win_over_the_settings_file():
    settings = merged(Settings(http=HttpSettings(host="0.0.0.0", port=1)), 2, None)
    assert (settings.http.host, settings.http.port, settings.grpc.port) == ("0.0.0.0", 2, 9000)


@pytest.mark.parametrize(("file", "name"), [("My Model (v2).onnx", "My-Model-v2"), ("resnet.50.pt2", "resnet-50")])
def test_a_models_name_is_made_of_the_files(file, name, tmp_path):
    (tmp_path / file).touch()
    assert model_name(tmp_path / file) == name
