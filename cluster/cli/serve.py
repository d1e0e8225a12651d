"""`prism serve`: from a model file to a URL in one command."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path

import click

from cluster import changes, operations
from cluster.artifact import Artifact
from cluster.cli.infer import sample_rows
from cluster.cli.output import emit, home_option, json_option
from cluster.cli.session import Session, session_of
from cluster.cli.up import merged, start_head
from cluster.cli.versions import deploy_and_wait
from cluster.errors import InvalidRequest
from cluster.home import Home
from cluster.names import Target, check_model
from cluster.settings import Settings

_INLINE_BYTES = 300  # a longer example request is put into a file


@click.command(epilog="Example: prism serve model.onnx --name flowers")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--name", help="The model's name.  [default: the file's name]")
@click.option("--max-rows", default=64, show_default=True, type=click.IntRange(1), help="Most rows of one batch.")
@click.option("--min", "min_replicas", type=int, help="Fewest replicas.")
@click.option("--max", "max_replicas", type=int, help="Most replicas.")
@click.option("--cpus", "num_cpus", type=float, help="CPUs, and threads, of one replica.")
@click.option("--http-port", type=click.IntRange(0, 65535), help="For a Prism that has to be started.  [default: 8000]")
@home_option
@json_option
def serve(
    path: Path,
    name: str | None,
    max_rows: int,
    http_port: int | None,
    home: Path,
    as_json: bool,
    **options: int | float | None,
) -> None:
    """Serve PATH: a .onnx or .pt2 file, or an artifact's folder.

    Starts Prism if nothing is up, proves and profiles the model, publishes it as the next version and deploys it. The
    first version of a model takes its traffic; a later one waits for `prism split` or `prism promote`.
    """
    say: Callable[[str], None] = (lambda _: None) if as_json else click.echo
    if not path.exists():
        raise InvalidRequest(f"model: {path} does not exist")
    model = check_model(name) if name else model_name(path)
    place = Home(home)
    boot = place.running() or start_head(place, merged(Settings(), http_port, None), say)
    session = session_of(boot)
    session.check_followed()
    overrides = {key: value for key, value in options.items() if value is not None}
    with tempfile.TemporaryDirectory(prefix="prism-serve-") as folder:
        from converters.candidate import Options
        from converters.wrap import wrap

        kept = Path(folder) / "artifact"
        artifact = wrap(path, kept, max_rows=max_rows, options=Options(apart=True), say=say)
        version = _publish(session, model, artifact, say)
    target = Target(model, version=version)
    document, _, _ = deploy_and_wait(session, target, overrides, timeout_s=300.0, say=say)
    takes_traffic = document.split is not None and bool(document.split.share_bp(version))
    asked = Target(model) if takes_traffic else target
    from cluster.cli.oip_client import infer_path, json_body

    record = document.record(version)
    url = session.url + infer_path(asked)
    example = json.dumps(json_body(sample_rows(session, record, 1), record.signature))
    curl = f"curl -s {url} -d {_data(place, str(target), example)}"
    session.store.close()
    facts = {"model": model, "version": version, "url": url, "curl": curl, "takes_traffic": takes_traffic}
    emit(facts, as_json, f"{target} is served at {url}\ntry it:\n  {curl}\n  prism infer {asked}")


def model_name(path: Path) -> str:
    """A model's name made of a file's. Raises: InvalidRequest if nothing usable is in it."""
    stem = path.resolve().stem if path.is_file() else path.resolve().name
    return check_model(re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:100])


def _publish(session: Session, model: str, artifact: Artifact, say: Callable[[str], None]) -> str:
    """The version that is `artifact`: published now, unless there is one."""
    if model in session.store.models():
        for version, record in session.store.read(model).versions.items():
            if record.digest == artifact.digest:
                say(f"this artifact is {model}:{version} already")
                return version
    document = operations.publish(session.store, session.artifacts, model, artifact, by=session.by)
    version = changes.newest(document)
    say(f"published {model}:{version}")
    return version


def _data(home: Home, name: str, example: str) -> str:
    """The argument of `curl -d`: the request itself, or a file that holds it."""
    if len(example) <= _INLINE_BYTES:
        return shlex.quote(example)
    folder = home.path / "examples"
    folder.mkdir(exist_ok=True)
    file = folder / f"{name.replace(':', '-')}.json"
    file.write_text(example)
    return "@" + shlex.quote(str(file))
