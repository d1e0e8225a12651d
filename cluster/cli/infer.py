"""`prism infer`: one request to the running gateway, and its answer in readable form."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.artifact import SAMPLE
from cluster.cli.output import emit, home_option, json_option
from cluster.cli.session import Session, connect
from cluster.documents import VersionRecord
from cluster.errors import InvalidRequest
from cluster.names import Target

if TYPE_CHECKING:
    import numpy as np

    from cluster.cli.oip_client import Answer

_SHOWN_VALUES = 8


@click.command(epilog="Example: prism infer flowers@canary --input photos.npz --top 3")
@click.argument("target", metavar="MODEL[:VERSION or @LABEL]")
@click.option("--input", "npz", type=click.Path(path_type=Path), help=".npz with one array per input, rows first.")
@click.option("--body", type=click.Path(path_type=Path), help="A JSON request of the protocol, sent as it is.")
@click.option("--rows", type=click.IntRange(1), help="Rows to send.  [default: all of --input; 1 of the sample]")
@click.option("--key", default="", help="Same key, same version, while the split does not move it.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="Classes shown, for a classifier.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the outputs to this .npz.")
@home_option
@json_option
def infer(
    target: str,
    npz: Path | None,
    body: Path | None,
    rows: int | None,
    key: str,
    top: int,
    out: Path | None,
    home: Path,
    as_json: bool,
) -> None:
    """Send a request and print the answer. Without --input, the artifact's own sample is sent."""
    if npz is not None and body is not None:
        raise click.UsageError("give either --input or --body")
    asked = Target.parse(target)
    with connect(home) as session:
        document = session.store.read(asked.model)
        record = document.record(document.resolve(asked))
        raw, length = _request(session, record, npz, body, rows)
        from cluster.cli.oip_client import infer as send

        began_s = time.perf_counter()
        answer = send(session.url, asked, raw, length, key)
        took_s = time.perf_counter() - began_s
        if out is not None:
            _save(out, answer)
        answered = document.versions.get(answer.version, record)
        facts = _facts(answer, answered, top) | {"seconds": round(took_s, 6)}
        emit(facts, as_json, _text(facts))


def sample_rows(session: Session, record: VersionRecord, rows: int) -> dict[str, np.ndarray]:
    """The first `rows` rows of the artifact's sample (all of it for a model that is not batched)."""
    folder = session.artifacts.fetch(record.uri, record.digest)
    return _first(_read_npz(folder / SAMPLE), record, rows)


def _request(
    session: Session, record: VersionRecord, npz: Path | None, body: Path | None, rows: int | None
) -> tuple[bytes, int | None]:
    if body is not None:
        try:
            return body.read_bytes(), None
        except OSError as error:
            raise InvalidRequest(f"body: {body}: {error.strerror}") from None
    from cluster.cli.oip_client import encode

    if npz is None:
        return encode(sample_rows(session, record, rows or 1), record.signature)
    arrays = _read_npz(npz)
    return encode(_first(arrays, record, rows) if rows else arrays, record.signature)


def _read_npz(file: Path) -> dict[str, np.ndarray]:
    import zipfile

    import numpy as np

    try:
        with np.load(file, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise InvalidRequest(f"input: {file} is no .npz (numpy.savez writes one)")
            return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise InvalidRequest(f"input: {file}: {error.strerror or error}") from None
    except (ValueError, zipfile.BadZipFile) as error:
        raise InvalidRequest(f"input: {file}: {error}") from None


def _first(arrays: dict[str, np.ndarray], record: VersionRecord, rows: int) -> dict[str, np.ndarray]:
    return {name: array[:rows] for name, array in arrays.items()} if record.signature.batched else arrays


def _save(out: Path, answer: Answer) -> None:
    import numpy as np

    try:
        # Object arrays would need pickle; fixed-width bytes do not.
        arrays: dict[str, Any] = {n: a.astype("S") if a.dtype == object else a for n, a in answer.outputs.items()}
        np.savez(out, **arrays)
    except OSError as error:
        raise InvalidRequest(f"out: {out}: {error.strerror}") from None


def _facts(answer: Answer, record: VersionRecord, top: int) -> dict[str, Any]:
    outputs = {}
    for name, array in answer.outputs.items():
        spec = next((spec for spec in record.signature.outputs if spec.name == name), None)
        shown: dict[str, Any] = {"datatype": spec.dtype if spec else str(array.dtype), "shape": list(array.shape)}
        labels = record.class_labels
        if labels and array.ndim == 2 and array.shape[1] == len(labels):
            order = (-array).argsort(axis=1, kind="stable")[:, :top]
            shown["classes"] = [
                [{"class": labels[i], "index": int(i), "score": float(row[i])} for i in best]
                for row, best in zip(array, order, strict=True)
            ]
        else:
            shown["data"] = _plain(array)
        outputs[name] = shown
    return {"model": answer.model, "version": answer.version, "outputs": outputs}


def _plain(array: np.ndarray) -> Any:
    if array.dtype == object:
        return [item.decode(errors="replace") for item in array.ravel().tolist()]
    return array.tolist()


def _text(facts: dict[str, Any]) -> str:
    lines = [f"{facts['model']}:{facts['version']} answered in {facts['seconds'] * 1000:.1f} ms"]
    for name, output in facts["outputs"].items():
        lines.append(f"{name}  {output['datatype']} {output['shape']}")
        for row, classes in enumerate(output.get("classes", ())):
            lines.append(f"  row {row}:")
            lines += [f"    {found['score']:10.4f}  {found['class']}" for found in classes]
        if "data" in output:
            data = output["data"] if isinstance(output["data"], list) else [output["data"]]
            lines += [f"  {_short(row)}" for row in data[:_SHOWN_VALUES]]
            if len(data) > _SHOWN_VALUES:
                lines.append(f"  ... {len(data)} in all (--json or --out for everything)")
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > _SHOWN_VALUES:
        return json.dumps(value[:_SHOWN_VALUES])[:-1] + f", ... {len(value)} in all]"
    return json.dumps(value)
