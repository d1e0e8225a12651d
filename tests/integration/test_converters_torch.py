"""PyTorch models become artifacts whose answers are the original's."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest

from cluster.errors import ConversionFailed, InvalidRequest
from converters.build import convert
from converters.candidate import Options
from converters.runtime import open_runtime
from converters.torch.pt2 import load_program, write_plain
from converters.wrap import wrap

pytestmark = pytest.mark.usefixtures("forked_proofs")

torch = pytest.importorskip("torch")
nn = torch.nn


class Mlp(nn.Module):
    """Returns a mapping, one tensor under two names, its own input, and a class."""

    def __init__(self):
        super().__init__()
        self.dense, self.norm, self.drop = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)

    def forward(self, x):
        h = self.drop(self.norm(self.dense(x)))
        return {"scores": h, "dense": h, "x": x, "best": h.argmax(1)}


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()
        )
        self.head = nn.Linear(8 * 4, 4)

    def forward(self, image):
        return self.head(self.body(image)[:, :, 1:3, 1:3].flatten(1))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 6)

    def forward(self, ids, mask):
        weight = mask.unsqueeze(-1).float()
        return (self.table(ids) * weight).sum(1) / weight.sum(1).clamp(min=1)


class Baked(nn.Module):
    def forward(self, x):
        return x.reshape(3, 4) + 1


def seeded(kind):
    torch.manual_seed(0)
    return kind()


def weights(module, path):
    torch.save(module.state_dict(), path)
    return path


def quick(**changes):
    return Options(profile_s=0.05, **changes)


def answers(artifact, *inputs):
    return open_runtime(artifact).run(inputs)


def test_weights_and_a_factory_become_onnx_with_free_rows(tmp_path):
    source = seeded(Mlp)
    options = quick(factory=Mlp, inputs=("x:FP32:N,4",), max_rows=16)
    (artifact,) = convert(weights(source, tmp_path / "w.pth"), tmp_path / "out", ("onnx",), options)
    signature = artifact.manifest.signature
    assert (signature.batched, signature.max_rows) == (True, 16)
    assert [spec.name for spec in signature.outputs] == ["scores", "dense", "x_out", "best"]
    parity = artifact.parity()
    assert parity["kind"] == "torch" and parity["passed"] and {1, 3, 8} <= {c["rows"] for c in parity["cases"]}
    assert "training mode" in parity["notes"][0]
    x = np.random.default_rng(0).standard_normal((5, 4)).astype("f4")
    with torch.inference_mode():
        expected = source.eval()(torch.from_numpy(x))
    scores, same, back, best = answers(artifact, x)
    np.testing.assert_allclose(scores, expected["scores"].numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(same, scores)
    np.testing.assert_array_equal(back, x)
    np.testing.assert_array_equal(best, expected["best"].numpy())
    assert b"test_converters_torch" not in artifact.model_path.read_bytes()


def test_safetensors_and_int8_in_one_command_are_compared_with_torch(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(seeded(Cnn).state_dict(), tmp_path / "w.safetensors")
    images = np.random.default_rng(0).standard_normal((48, 1, 12, 12)).astype("f4")
    np.savez(tmp_path / "sample.npz", picture=images[:16])
    np.savez(tmp_path / "calibrate.npz", picture=images[16:])
    options = quick(
        factory=Cnn,
        sample=tmp_path / "sample.npz",
        calibrate=tmp_path / "calibrate.npz",
        max_rows=16,
        tolerance={"top1": 0.7},
    )
    fp32, int8 = convert(tmp_path / "w.safetensors", tmp_path / "out", ("onnx", "int8"), options)
    assert [a.manifest.precision for a in (fp32, int8)] == ["fp32", "int8"]
    assert [spec.name for spec in int8.manifest.signature.inputs] == ["picture"]
    assert int8.parity()["kind"] == "torch"
    assert {case["inputs"] for case in int8.parity()["cases"]} == {"sample", "calibration"}
    assert 15 < int8.parity()["outputs"][0]["sqnr_db"] < fp32.parity()["outputs"][0]["sqnr_db"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["int8", "onnx"]


def test_weights_too_large_for_one_message_lie_in_one_file_beside_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr("converters.onnx.file.INLINE_BYTES", 1000)
    monkeypatch.setattr("converters.torch.onnx.INLINE_BYTES", 1000)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx.data").touch()  # onnx refuses to write weights if the current folder has such a file
    rows = np.random.default_rng(0).standard_normal((32, 4)).astype("f4")
    np.savez(tmp_path / "rows.npz", x=rows)

    def wide():
        return nn.Sequential(nn.Linear(4, 512), nn.ReLU(), nn.Linear(512, 3))

    names = ("onnx", "optimized", "fp16", "bf16", "int8", "int8-trt", "int8-dynamic", "fp8-trt", "tensorrt-int8")
    calibrated = quick(factory=wide, calibrate=tmp_path / "rows.npz", sample=tmp_path / "rows.npz", engine="on-load")
    made = convert(weights(seeded(wide), tmp_path / "w.pth"), tmp_path / "out", names, calibrated)
    evidence = {"parity.json", "profile.json", "report.html", "sample.npz"}
    for name, artifact in zip(names, made, strict=True):
        answered = {"answers.npz"} if name in ("bf16", "fp8-trt", "tensorrt-int8") else set()
        assert set(artifact.manifest.files) == {"model.onnx", "model.onnx.data"} | evidence | answered, name
        artifact.verify()
    # FP32 weights are 16384 bytes; what TensorRT reads holds them with the nodes that quantise them.
    sizes = {name: (a.path / "model.onnx.data").stat().st_size for name, a in zip(names, made, strict=True)}
    assert sizes["fp16"] == sizes["bf16"] == sizes["onnx"] // 2 and sizes["int8"] < 0.6 * sizes["onnx"]
    assert sizes["onnx"] <= sizes["fp8-trt"] < 1.2 * sizes["onnx"]


def test_several_inputs_and_a_second_free_axis(tmp_path):
    options = quick(factory=Tokens, inputs=("mask:INT64:N,L=5", "ids:INT64:N,L=5"))
    (artifact,) = convert(weights(seeded(Tokens), tmp_path / "w.pth"), tmp_path / "out", options=options)
    signature = artifact.manifest.signature
    assert [(spec.name, spec.shape) for spec in signature.inputs] == [("ids", (-1, -1)), ("mask", (-1, -1))]
    ids = np.arange(14, dtype="i8").reshape(2, 7) % 10
    assert answers(artifact, ids, np.ones_like(ids))[0].shape == (2, 6)


def test_a_sequence_axis_is_made_free_on_request_and_proved_at_both_ends(tmp_path):
    np.savez(tmp_path / "texts.npz", ids=np.arange(20).reshape(4, 5) % 10, mask=np.ones((4, 5), "i8"))
    ranges = ("ids:1=1..24", "mask:1=1..24")
    options = quick(factory=Tokens, sample=tmp_path / "texts.npz", dynamic=ranges, max_rows=8)
    fp32, fused = convert(weights(seeded(Tokens), tmp_path / "w.pth"), tmp_path / "out", ("onnx", "optimized"), options)
    for artifact in (fp32, fused):
        assert [spec.shape for spec in artifact.manifest.signature.inputs] == [(-1, -1), (-1, -1)]
        origins = [case["inputs"] for case in artifact.parity()["cases"]]
        assert origins[-2:] == ["edge ids:1=1, mask:1=1", "edge ids:1=24, mask:1=24"]
    assert artifact.parity()["kind"] == "torch"


def test_the_axes_of_an_image_are_made_free_on_request_and_proved_at_their_ends(tmp_path):
    def anysize():
        return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    shape, ranges = ("image:FP32:N,1,12,16",), ("image:2=8..24", "image:3=8..32")
    options = quick(factory=anysize, inputs=shape, dynamic=ranges, max_rows=4)
    network = seeded(anysize)
    (artifact,) = convert(weights(network, tmp_path / "w.pth"), tmp_path / "out", ("onnx",), options)
    assert [spec.shape for spec in artifact.manifest.signature.inputs] == [(-1, 1, -1, -1)]
    calls = {case["inputs"] for case in artifact.parity()["cases"]}
    assert {f"edge image:2={height}, image:3={width}" for height in (8, 24) for width in (8, 32)} <= calls
    image = np.random.default_rng(0).standard_normal((2, 1, 9, 31)).astype("f4")
    with torch.inference_mode():
        np.testing.assert_allclose(answers(artifact, image)[0], network(torch.from_numpy(image)), rtol=1e-4, atol=1e-6)


def test_a_linear_layer_over_texts_is_quantised_at_run_time(tmp_path):
    class Head(Tokens):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(6, 5)

        def forward(self, ids, mask):
            return self.out(super().forward(ids, mask))

    np.savez(tmp_path / "texts.npz", ids=np.arange(20).reshape(4, 5) % 10, mask=np.ones((4, 5), "i8"))
    options = quick(
        factory=Head,
        sample=tmp_path / "texts.npz",
        dynamic=("ids:1=1..9", "mask:1=1..9"),
        max_rows=8,
        tolerance={"top1": 0.0},  # an untrained model's classes are nearly tied
    )
    (int8,) = convert(weights(seeded(Head), tmp_path / "w.pth"), tmp_path / "out", ("int8-dynamic",), options)
    assert int8.manifest.precision == "int8" and int8.parity()["kind"] == "torch"
    assert any("depends a little on the rows" in note for note in int8.parity()["notes"])


def test_a_batch_size_baked_into_the_model_is_refused_and_served_unbatched_on_request(tmp_path):
    source = tmp_path / "w.pth"
    torch.save({"state_dict": {"module.a": torch.zeros(1)}}, source)

    class Holder(Baked):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.zeros(1))

    with pytest.raises(ConversionFailed, match="fails on 1 rows"):
        convert(source, tmp_path / "out", options=quick(factory=Holder, inputs=("x:FP32:N,4",)))
    (artifact,) = convert(source, tmp_path / "out", options=quick(factory=Holder, inputs=("x:FP32:3,4",), max_rows=1))
    assert artifact.manifest.signature.batched is False
    assert len(artifact.manifest.extra["notes"]) == 3  # state_dict, module., training mode


def export(module, path, rows=None):
    shapes = ({0: rows},) if rows is not None else None
    torch.export.save(torch.export.export(module.eval(), (torch.randn(3, 4),), dynamic_shapes=shapes), path)
    return path


def test_a_pt2_needs_no_factory_and_keeps_its_row_limit(tmp_path):
    file = export(seeded(Mlp), tmp_path / "m.pt2", torch.export.Dim("batch", min=1, max=5))
    artifact = wrap(file, tmp_path / "out", options=quick())
    assert artifact.manifest.signature.max_rows == 5
    assert artifact.parity()["kind"] == "torch"


def test_a_pt2_without_a_row_limit_gets_the_users(tmp_path):
    file = export(seeded(Mlp), tmp_path / "m.pt2", torch.export.Dim.DYNAMIC)
    assert wrap(file, tmp_path / "out", max_rows=6, options=quick()).manifest.signature.max_rows == 6


def test_a_pt2_is_tried_with_the_sizes_it_was_exported_with(tmp_path):
    rows, length = torch.export.Dim("b", min=1, max=64), torch.export.Dim("l", min=4, max=9)
    program = torch.export.export(
        seeded(Tokens).eval(),
        (torch.ones(3, 6, dtype=torch.int64),),
        {"mask": torch.ones(3, 6, dtype=torch.int64)},
        dynamic_shapes={"ids": {0: rows, 1: length}, "mask": {0: rows, 1: length}},
    )
    torch.export.save(program, tmp_path / "m.pt2")
    artifact = wrap(tmp_path / "m.pt2", tmp_path / "out", options=quick())
    with np.load(artifact.path / "sample.npz") as sample:
        assert sample["ids"].shape == sample["mask"].shape == (3, 6)
    assert [spec.shape for spec in artifact.manifest.signature.inputs] == [(-1, -1), (-1, -1)]


def test_rows_that_a_branch_mixes_are_refused(tmp_path):
    class Branch(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a - 1, (x,))

    file = export(Branch(), tmp_path / "m.pt2", torch.export.Dim.DYNAMIC)
    with pytest.raises(ConversionFailed, match="in company differs"):
        wrap(file, tmp_path / "out", options=quick())


def test_a_pt2_of_one_size_is_served_unbatched(tmp_path):
    artifact = wrap(export(seeded(Mlp), tmp_path / "m.pt2"), tmp_path / "out", options=quick())
    assert artifact.manifest.signature.batched is False
    assert "fixed dimension 0" in artifact.manifest.extra["notes"][0]


def test_a_pt2_exported_in_training_mode_is_refused(tmp_path):
    program = torch.export.export(
        seeded(Mlp).train(), (torch.randn(3, 4),), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},)
    )
    torch.export.save(program, tmp_path / "m.pt2")
    with pytest.raises(ConversionFailed, match=r"exported in training mode .*eval\(\)"):
        wrap(tmp_path / "m.pt2", tmp_path / "out", options=quick())


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def changed(file, target, change, extra=()):
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name in extra:
            new.writestr(name, b"x")
    return target


def with_call(target, function, argument):
    """A change to a graph, which then begins with a call of `target` with a function and its argument."""

    def change(name, content):
        if not name.endswith("model.json"):
            return content
        document = json.loads(content)
        nodes = document["graph_module"]["graph"]["nodes"]
        given = [{"name": "", "arg": arg, "kind": 1} for arg in ({"as_operator": function}, {"as_string": argument})]
        call = {"target": target, "inputs": given, "outputs": [], "metadata": {}, "is_hop_single_tensor_return": None}
        nodes.insert(0, call)
        return json.dumps(document).encode()

    return change


def test_a_pt2_that_could_run_code_is_refused_before_torch_sees_it(tmp_path):
    plain = export(seeded(Mlp), tmp_path / "m.pt2", torch.export.Dim("batch", min=1, max=64))
    trap = tmp_path / "sprung"
    buffer = io.BytesIO()
    torch.save(((Trap(trap),), {}), buffer)
    call = f"__import__('os').mkdir({str(trap)!r})".encode()

    def in_graph(old, new):
        return lambda name, content: content.replace(old, new) if name.endswith("model.json") else content

    samples = changed(plain, tmp_path / "a.pt2", lambda n, c: buffer.getvalue() if "sample_inputs" in n else c)
    target = changed(plain, tmp_path / "b.pt2", in_graph(b"torch.ops.aten.linear.default", b"torch.os.mkdir"))
    writes = changed(plain, tmp_path / "f.pt2", in_graph(b"aten.linear.default", b"aten.from_file.default"))
    symbol = changed(plain, tmp_path / "c.pt2", in_graph(b"Symbol('s77', positive=True, integer=True)", call))
    library = changed(plain, tmp_path / "d.pt2", lambda n, c: c, ["m/data/aotinductor/model/x.so"])
    config = changed(plain, tmp_path / "e.pt2", lambda n, c: c.replace(b'"use_pickle": false', b'"use_pickle": true'))
    saves = changed(plain, tmp_path / "g.pt2", in_graph(b"aten.linear.default", b"aten.save.default"))
    calls = [
        changed(plain, tmp_path / f"h{i}.pt2", with_call(target, "torch.os.mkdir", str(trap)))
        for i, target in enumerate(("_operator.call", "torch.ops.higher_order.wrap"))
    ]
    for file, what in (
        (samples, "sample inputs"),
        (target, r"torch\.os\.mkdir"),
        (writes, r"torch\.ops\.aten\.from_file"),
        (symbol, "the expression"),
        (library, "aotinductor"),
        (config, "a pickle for"),
        (saves, r"torch\.ops\.aten\.save"),
        *((file, "a call of") for file in calls),
    ):
        with pytest.raises(ConversionFailed, match=f"{what}.*--trust-pickle"):
            load_program(file, trust_pickle=False)
    assert not trap.exists()
    load_program(plain, trust_pickle=True)


def test_a_rebuilt_pt2_is_the_same_program(tmp_path):
    file = export(seeded(Mlp), tmp_path / "m.pt2", torch.export.Dim("batch", min=1, max=64))
    write_plain(file, io.BytesIO())
    x = torch.randn(2, 4)
    ours, theirs = load_program(file, trust_pickle=False), torch.export.load(file)
    torch.testing.assert_close(ours.module()(x)["scores"], theirs.module()(x)["scores"])


def test_a_damaged_pt2_is_refused(tmp_path):
    file = tmp_path / "m.pt2"
    file.write_bytes(b"PK nothing")
    with pytest.raises(ConversionFailed, match=r"m\.pt2: not a \.pt2"):
        wrap(file, tmp_path / "out")


def test_a_pickled_module_is_refused_unless_trusted(tmp_path):
    file = tmp_path / "whole.pt"
    torch.save(seeded(Cnn), file)
    with pytest.raises(ConversionFailed, match=r"pickled code.*--trust-pickle"):
        convert(file, tmp_path / "out", options=quick(factory=Cnn, inputs=("image:FP32:N,1,12,12",)))
    options = quick(inputs=("image:FP32:N,1,12,12",), trust_pickle=True, max_rows=4)
    (artifact,) = convert(file, tmp_path / "out", options=options)
    assert "pickled module" in artifact.manifest.extra["notes"][0]


def test_a_trap_in_weights_is_never_sprung(tmp_path):
    trap = tmp_path / "sprung"
    for name in ("a.pth", "b.pt"):
        torch.save({"w": Trap(trap)}, tmp_path / name)
    (tmp_path / "c.pth").write_bytes(pickle.dumps(Trap(trap)))
    for name in ("a.pth", "b.pt", "c.pth"):
        with pytest.raises(ConversionFailed):
            convert(tmp_path / name, tmp_path / "out", options=quick(factory=Cnn, inputs=("x:FP32:N,4",)))
    assert not trap.exists()


def a_number():
    return 3


def test_factories_that_cannot_work_are_named(tmp_path, monkeypatch):
    (tmp_path / "factories.py").write_text("import torch\ndef bad(): raise KeyError('depth')\nnumber = 3\n")
    (tmp_path / "broken.py").write_text("import no_such_module_here\n")
    monkeypatch.chdir(tmp_path)
    source = weights(seeded(Mlp), tmp_path / "w.pth")
    for factory, message in (
        (None, "holds weights only; --factory"),
        ("factories", "expected module:callable"),
        ("no_such_module_here:f", "importing 'no_such_module_here' raised ModuleNotFoundError"),
        ("broken:f", "importing 'broken' raised ModuleNotFoundError"),
        ("factories:missing", "has no 'missing'"),
        ("factories:number", "expected a callable"),
        ("factories:bad", "factories:bad raised KeyError"),
        (a_number, r"expected a torch\.nn\.Module from a_number, got int"),
    ):
        with pytest.raises(InvalidRequest, match=f"factory: .*{message}"):
            convert(source, tmp_path / "out", options=quick(factory=factory, inputs=("x:FP32:N,4",)))
    with pytest.raises(ConversionFailed, match=r"11 missing \(.*7 unknown"):
        convert(source, tmp_path / "out", options=quick(factory=Cnn, inputs=("x:FP32:N,4",)))
    assert not (tmp_path / "out").exists()


def test_a_module_alone_does_not_say_what_it_takes(tmp_path):
    with pytest.raises(InvalidRequest, match="give --sample"):
        convert(weights(seeded(Mlp), tmp_path / "w.pth"), tmp_path / "out", options=quick(factory=Mlp))


def test_inputs_the_model_cannot_take_are_one_clear_line(tmp_path):
    source = weights(seeded(Mlp), tmp_path / "w.pth")
    with pytest.raises(ConversionFailed, match="the PyTorch model fails on 1 rows of random data: RuntimeError"):
        convert(source, tmp_path / "out", options=quick(factory=Mlp, inputs=("x:FP32:N,5",)))
