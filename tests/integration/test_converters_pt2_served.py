"""Exported programs are served by PyTorch with PyTorch's own answers."""

import numpy as np
import pytest

from cluster.errors import InvalidRequest
from converters.build import convert
from converters.candidate import Options
from converters.runtime import open_runtime

torch = pytest.importorskip("torch")
nn = torch.nn

pytestmark = pytest.mark.usefixtures("forked_proofs")


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(10, 6), nn.Linear(6, 3)

    def forward(self, ids, mask):
        weight = mask.unsqueeze(-1).float()
        mean = (self.table(ids) * weight).sum(1) / weight.sum(1).clamp(min=1)
        return {"scores": self.head(mean), "mean": mean}


def test_weights_become_a_program_that_answers_to_the_bit(tmp_path):
    torch.manual_seed(0)
    source = Tokens().eval()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    options = Options(profile_s=0.05, max_rows=8, factory=Tokens, inputs=("ids:INT64:N,L=5", "mask:INT64:N,L=5"))
    (artifact,) = convert(tmp_path / "w.pth", tmp_path / "out", ("pytorch",), options)
    signature = artifact.manifest.signature
    assert artifact.manifest.format == "pytorch" and artifact.parity()["kind"] == "torch" and signature.batched
    assert [spec.name for spec in signature.outputs] == ["scores", "mean"]
    runtime = open_runtime(artifact)
    ids = np.arange(14, dtype="i8").reshape(2, 7) % 10
    with torch.inference_mode():
        expected = source(torch.from_numpy(ids), torch.ones(2, 7, dtype=torch.int64))
    for got, name in zip(runtime.run((ids, np.ones_like(ids))), ("scores", "mean"), strict=True):
        np.testing.assert_array_equal(got, expected[name].numpy())
    with pytest.raises(InvalidRequest, match="refuses these inputs"):
        runtime.run((ids + 50, np.ones_like(ids)))
    with pytest.raises(InvalidRequest, match="ids: expected shape"):
        runtime.run((ids[..., None], np.ones_like(ids)))
    again, onnx_form = convert(artifact.model_path, tmp_path / "again", ("pytorch", "onnx"), Options(profile_s=0.05))
    assert again.parity()["passed"] and onnx_form.parity()["passed"]
