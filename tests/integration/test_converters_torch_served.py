"""What PyTorch serves, TorchScript and compiled programs: proved, and with the source's own answers."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from cluster.artifact import sha256_of
from cluster.derived import DerivedFiles
from cluster.errors import ArtifactCorrupt, ConversionFailed, EngineFailed, InvalidRequest
from converters.build import convert
from converters.candidate import Options
from converters.runtime import open_runtime

torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = pytest.mark.usefixtures("forked_proofs")


class Halving(nn.Module):
    """How often each row must be halved until it is small: a loop that ends by its values."""

    def forward(self, x: torch.Tensor, least: torch.Tensor) -> dict[str, torch.Tensor]:
        steps = torch.zeros(x.shape[0], dtype=torch.int64)
        large = x.abs().amax(1) > least
        while bool(large.any()):
            x = torch.where(large.unsqueeze(1), x / 2, x)
            steps = steps + large.to(torch.int64)
            large = x.abs().amax(1) > least
        return {"small": x, "steps": steps, "total": x.float().sum(1)}


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 2)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.dense(state).sum()


class Reaches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("sprung", True, 4)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)

    def forward(self, ids, mask):
        weight = mask.unsqueeze(-1).float()
        mean = (self.table(ids) * weight).sum(1) / weight.sum(1).clamp(min=1)
        return {"scores": self.head(mean).softmax(-1), "mean": mean}


def quick(**changes):
    return Options(profile_s=0.05, **changes)


def script(module, path):
    torch.jit.script(module.eval()).save(str(path))
    return path


def test_a_script_with_a_loop_fp16_and_several_outputs_answers_as_it_did(tmp_path):
    source = script(Halving(), tmp_path / "m.pt")
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "rows.npz",
        x=rng.normal(scale=20, size=(8, 4)).astype("f2"),
        least=rng.uniform(1, 4, 8).astype("f2"),
    )
    options = quick(sample=tmp_path / "rows.npz", max_rows=8, compiled="auto")
    (artifact,) = convert(source, tmp_path / "out", ("torchscript",), options)
    signature, parity = artifact.manifest.signature, artifact.parity()
    assert artifact.manifest.format == "torchscript" and signature.batched
    assert [(s.name, s.dtype, s.shape) for s in signature.inputs] == [("x", "FP16", (-1, 4)), ("least", "FP16", (-1,))]
    assert [(s.name, s.dtype) for s in signature.outputs] == [("small", "FP16"), ("steps", "INT64"), ("total", "FP32")]
    assert parity["kind"] == "torch" and parity["passed"] and {o["worst_abs"] for o in parity["outputs"]} <= {0.0, None}
    assert isinstance(artifact.manifest.extra["compiled"]["cpu"]["kept"], bool)
    x, least = rng.normal(scale=99, size=(3, 4)).astype("f2"), np.ones(3, "f2")
    expected = Halving()(torch.from_numpy(x), torch.from_numpy(least))
    runtime = open_runtime(artifact)
    for got, name in zip(runtime.run((x, least)), ("small", "steps", "total"), strict=True):
        np.testing.assert_array_equal(got, expected[name].numpy())
    with pytest.raises(InvalidRequest, match="x: expected shape"):
        runtime.run((x[..., None], least))
    (artifact.path / "interface.json").write_text("{}")
    with pytest.raises(ArtifactCorrupt, match=r"interface\.json"):
        open_runtime(artifact)


def test_a_script_without_rows_is_served_one_request_at_a_time(tmp_path):
    source = script(Fixed(), tmp_path / "m.pt")
    (artifact,) = convert(source, tmp_path / "out", ("torchscript",), quick(inputs=("state:FP32:2,3",), max_rows=1))
    signature = artifact.manifest.signature
    assert not signature.batched and signature.inputs[0].shape == (2, 3) and signature.outputs[0].shape == ()
    assert artifact.parity()["passed"]


def test_a_script_that_reaches_out_is_not_served_even_if_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = script(Reaches(), tmp_path / "m.pt")
    options = quick(inputs=("x:FP32:N,4",), max_rows=4)
    with pytest.raises(ConversionFailed, match=r"its code uses 'from_file'.*--trust-pickle"):
        convert(source, tmp_path / "out", ("torchscript",), options)
    assert not (tmp_path / "sprung").exists()
    trusted = quick(inputs=("x:FP32:N,4",), max_rows=4, trust_pickle=True)
    with pytest.raises(ConversionFailed, match=r"what serves trusts no archive: .*'from_file'"):
        convert(source, tmp_path / "out", ("torchscript",), trusted)


@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch's compiler needs g++")
def test_a_compiled_program_serves_all_sizes_without_being_compiled_again(tmp_path, monkeypatch):
    from converters.torch import compiled as torch_compiled

    source = Tokens().eval()  # of other weights each time, so that nothing is found done
    torch.save(source.state_dict(), tmp_path / "w.pth")
    options = quick(
        factory=Tokens,
        inputs=("ids:INT64:N,L=5", "mask:INT64:N,L=5"),
        dynamic=("ids:1=2..9", "mask:1=2..9"),
        max_rows=4,
        compiled="on",
    )
    (artifact,) = convert(tmp_path / "w.pth", tmp_path / "out", ("pytorch",), options)
    said = artifact.manifest.extra["compiled"]["cpu"]
    assert said["kept"] and said["asked"] == "on" and said["compile_s"] > 0 and set(said["eager"]) == set(said["quick"])
    assert any(note.startswith("served compiled") for note in artifact.parity()["notes"])
    assert not list(artifact.path.rglob("*.so")) and artifact.model_path.name == "model.pt2"

    def compiles(*_):
        raise EngineFailed("it is compiled again")

    monkeypatch.setattr(torch_compiled, "_make", compiles)
    runtime = open_runtime(artifact)
    assert runtime.compiled
    rng = np.random.default_rng(0)
    for rows, length in ((1, 2), (3, 5), (4, 9), (7, 30)):
        ids, mask = rng.integers(0, 10, (rows, length)), np.ones((rows, length), "i8")
        with torch.inference_mode():
            expected = source(torch.from_numpy(ids), torch.from_numpy(mask))
        for got, name in zip(runtime.run((ids, mask)), ("scores", "mean"), strict=True):
            np.testing.assert_allclose(got, expected[name].numpy(), rtol=1e-4, atol=1e-6)
    with pytest.raises(InvalidRequest, match="refuses these inputs"):
        runtime.run((ids, mask[:, :-1]))
    with pytest.raises(InvalidRequest, match="refuses these inputs"):
        runtime.run((ids + 50, mask))
    with pytest.raises(EngineFailed, match="compiled again"):
        open_runtime(artifact, threads=2)  # other threads, other code; it was asked for

    # A replica keeps what it has made where the artifacts are, and the next one finds it there.
    kept = Path(tempfile.gettempdir()) / f"prism-compiled-{os.getuid()}" / "derived" / sha256_of(artifact.model_path)
    package = next(kept.rglob(torch_compiled.PACKAGE))
    derived = DerivedFiles(str(tmp_path / "store"), tmp_path / "cache")
    monkeypatch.setattr(torch_compiled, "_make", lambda model, folder, *_: shutil.copy(package, folder))
    assert open_runtime(artifact, derived=derived).compiled
    monkeypatch.setattr(torch_compiled, "_make", compiles)
    assert open_runtime(artifact, derived=derived).compiled
    assert derived.fetch(artifact.digest, torch_compiled.key_of(1, torch.device("cpu"))) is not None
    shutil.rmtree(kept)
