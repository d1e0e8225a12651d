import pytest
from click.testing import CliRunner

from cluster.artifacts_store import ArtifactStore
from cluster.cli.main import cli
from cluster.cli.resources import size_bytes
from cluster.cli.session import Session
from cluster.errors import InvalidRequest
from cluster.settings import Boot, Settings
from cluster.store.memory import MemoryStore
from onnx_models import mlp_artifact


@pytest.fixture
def session(tmp_path):
    boot = Boot(str(tmp_path), "", "", "redis://h/0", str(tmp_path / "a"), "", "admin", "wire", 1, 2, Settings())
    return Session(boot, MemoryStore(), ArtifactStore(str(tmp_path / "a"), tmp_path / "cache"), "ada")


@pytest.fixture
def deploy(session, tmp_path):
    """Runs `prism deploy m:1 OPTIONS`; what the document says then."""
    run = CliRunner()
    artifact = mlp_artifact(tmp_path / "m")
    assert run.invoke(cli, ["publish", "m", str(artifact.path)], obj=session).exit_code == 0

    def deploy(*options):
        done = run.invoke(cli, ["deploy", "m:1", "--no-wait", *options], obj=session)
        if done.exit_code:
            raise done.exception
        return session.store.read("m").versions["1"].deploy

    return deploy


def test_what_a_replica_needs_is_said_in_options(deploy):
    settings = deploy(
        "--cpus", "2", "--gpus", "0.25", "--accelerator", "gpu", "--memory", "1.5G", "--allow-cpu",
        "--provider", "tensorrt",
        "--on", "accelerator-type=A100", "--on", "pool=in(a,b)",
    )  # fmt: skip
    assert (settings.num_cpus, settings.num_gpus, settings.accelerator) == (2, 0.25, "gpu")
    assert settings.provider == "tensorrt"
    assert settings.memory_bytes == 3 << 29 and settings.cpu_fallback
    assert settings.on == {"ray.io/accelerator-type": "A100", "pool": "in(a,b)"}


def test_what_is_not_given_stays_and_can_be_taken_back(deploy):
    deploy("--memory", "2G", "--on", "pool=a", "--allow-cpu")
    kept = deploy("--max", "3")
    assert (kept.memory_bytes, kept.on, kept.cpu_fallback) == (2 << 30, {"pool": "a"}, True)
    back = deploy("--memory", "auto", "--on", "any", "--no-allow-cpu")
    assert (back.memory_bytes, back.on, back.cpu_fallback) == (None, {}, False)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--gpus", "1.5"], r"deploy\.num_gpus: expected a share up to 1, or a whole number"),
        (["--gpus", "1", "--accelerator", "cpu"], r"deploy\.num_gpus: expected 0 with accelerator cpu, got 1"),
        (
            ["--provider", "cuda", "--accelerator", "cpu"],
            r"deploy\.provider: expected auto with accelerator cpu, got cuda",
        ),
        (["--memory", "lots"], r"memory: expected a size such as 4G or 512M, auto or 0, got 'lots'"),
        (["--on", "A100"], r"on: expected LABEL=VALUE such as accelerator-type=A100, got 'A100'"),
        (["--cpus", "-1"], r"deploy\.num_cpus: expected 0 to 1024, got -1"),
    ],
)
def test_impossible_resources_are_refused_in_one_line_and_change_nothing(deploy, session, options, told):
    before = deploy("--max", "2")
    revision = session.store.read("m").revision
    with pytest.raises(InvalidRequest, match=told) as raised:
        deploy(*options)
    assert "\n" not in raised.value.message
    assert session.store.read("m").revision == revision
    assert session.store.read("m").versions["1"].deploy == before


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("512M", 512 << 20), ("4G", 4 << 30), ("1.5GiB", 3 << 29), ("1t", 1 << 40)]
)
def test_sizes_are_powers_of_1024(text, size):
    assert size_bytes(text) == size
