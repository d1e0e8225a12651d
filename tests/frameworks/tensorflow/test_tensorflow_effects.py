"""What SavedModels, Keras files and TFLite files may hold, where they are converted and where they are served."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from cluster.errors import ConversionFailed, EngineFailed
from converters.build import convert
from converters.candidate import Options
from converters.interface import TRUST
from converters.runtime import open_runtime
from onnx_models import mlp_artifact

tf = pytest.importorskip("tensorflow", reason="run in the environment that `make env-tensorflow` makes")
keras = pytest.importorskip("keras")

import h5py  # noqa: E402
from tensorflow.core.protobuf import saved_model_pb2  # noqa: E402

from converters.tensorflow import effects as tf_effects  # noqa: E402
from converters.tensorflow.effects import allowed, effects  # noqa: E402
from tf_models import in_tensorflow, in_tflite, once  # noqa: E402

QUICK = Options(profile_s=0.05, max_rows=4)
TEXT = [tf.TensorSpec([None], tf.string, name="x")]
in_saved_model, in_lite = once(in_tensorflow(mlp_artifact)), once(in_tflite(mlp_artifact))


def saved(folder, call, signature=TEXT, **parts):
    """A SavedModel whose serving signature is `call`."""
    module = tf.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    module.call = tf.function(call, input_signature=signature)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.call})
    return folder


def read(folder):
    return saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())


def found(folder):
    return effects(read(folder).meta_graphs[0])


def table(folder):
    (folder / "words.txt").write_text("a\nb\n")
    lines = tf.lookup.TextFileIndex
    source = tf.lookup.TextFileInitializer(
        str(folder / "words.txt"), tf.string, lines.WHOLE_LINE, tf.int64, lines.LINE_NUMBER
    )
    return tf.lookup.StaticHashTable(source, -1)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Tables, one of them from an asset, variables, loops, branches and random numbers."""
    folder = tmp_path_factory.mktemp("words")
    known, learnt = table(folder), tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)
    weights = tf.Variable([1.0, 2.0])

    def call(x):
        i, total = tf.while_loop(lambda i, t: i < 3, lambda i, t: (i + 1, t + weights), [0, weights])
        total = tf.cond(i > 2, lambda: total + tf.random.normal([2]) * 0, lambda: total)
        return {"id": known.lookup(x) + learnt.lookup(x), "total": total[None] + tf.zeros([tf.shape(x)[0], 1])}

    return saved(folder / "model", call, known=known, learnt=learnt, weights=weights)


def test_a_model_with_tables_of_its_own_assets_is_served(words, tmp_path):
    assert found(words) == ()
    options = replace(QUICK, max_rows=1, inputs=("x:BYTES:1",))
    (artifact,) = convert(words, tmp_path / "out", ("tensorflow",), options)
    ids, total = open_runtime(artifact).run((np.array([b"b"], object),))
    assert ids.tolist() == [1] and total.tolist() == [[4.0, 8.0]]


def test_a_table_may_be_filled_from_the_models_own_files_only(words):
    model = read(words)
    graph = model.meta_graphs[0]
    graph.asset_file_def[0].filename = "../../../../etc/passwd"
    assert effects(graph) == ("the asset '../../../../etc/passwd', outside of its folder",)
    graph = read(words).meta_graphs[0]
    del graph.asset_file_def[:]  # the path is what the graph says then
    assert effects(graph) == ("InitializeTableFromTextFileV2 of a file that is none of its assets",)


def test_the_path_of_an_asset_cannot_be_replaced_by_another_on_its_way(words):
    graph = read(words).meta_graphs[0]
    nodes = {node.name: node for node in graph.graph_def.node}
    put = next(n for n in nodes.values() if n.op == "AssignVariableOp" and n.input[1].startswith("asset_path"))
    other = graph.graph_def.node.add()
    other.CopyFrom(nodes[put.input[0]])  # another node for the same variable
    other.name = "other"
    assert effects(graph) == ()
    again = graph.graph_def.node.add()
    again.CopyFrom(put)
    again.name = "again"
    again.input[:] = ["other", "elsewhere"]
    assert effects(graph) == ("InitializeTableFromTextFileV2 of a file that is none of its assets",)


def writes(x):
    tf.raw_ops.SaveV2(prefix=x[0], tensor_names=["a"], shape_and_slices=[""], tensors=[x])
    return {"y": x}


def reads(x):
    return {"y": tf.raw_ops.RestoreV2(prefix=x[0], tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.string])[0]}


def merges(x):
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=x, destination_prefix=x[0])
    return {"y": x}


def fills(x):
    handle = tf.raw_ops.HashTableV2(key_dtype=tf.string, value_dtype=tf.int64)
    tf.raw_ops.InitializeTableFromTextFileV2(table_handle=handle, filename=x[0], key_index=-2, value_index=-1)
    return {"y": tf.raw_ops.LookupTableFindV2(table_handle=handle, keys=x, default_value=tf.constant(-1, tf.int64))}


def prints(x):
    tf.raw_ops.PrintV2(input=x[0], output_stream="file:///tmp/never-written")
    return {"y": x}


CALLS = {
    "SaveV2 of a path that is not the loader's": writes,
    "RestoreV2 of a path that is not the loader's": reads,
    "MergeV2Checkpoints of a path that is not the loader's": merges,
    "InitializeTableFromTextFileV2 of a file that is none of its assets": fills,
    "PrintV2": prints,
    "ReadFile": lambda x: {"y": tf.map_fn(tf.io.read_file, x)},
    "MatchingFiles": lambda x: {"y": tf.io.matching_files(x)},
    "EagerPyFunc": lambda x: {"y": tf.py_function(lambda v: v, [x], tf.string)},
    "DecodeProtoV2": lambda x: {
        "y": tf.io.decode_proto(x, "m", ["f"], [tf.int32], descriptor_source="/etc/passwd").values[0]
    },
}


@pytest.mark.parametrize("what", CALLS)
def test_what_reaches_out_is_named_wherever_it_is(tmp_path, what):
    assert what in found(saved(tmp_path / "m", CALLS[what]))


def test_the_graph_that_is_searched_is_the_one_that_every_reader_takes(tmp_path):
    plain = saved(tmp_path / "m", lambda x: {"y": tf.strings.lower(x)})
    model, other = read(plain), read(saved(tmp_path / "n", lambda x: {"y": tf.map_fn(tf.io.read_file, x)}))
    model.meta_graphs[0].meta_info_def.tags.append("other")
    model.meta_graphs.append(other.meta_graphs[0])
    (plain / "saved_model.pb").write_bytes(model.SerializeToString())
    for target in ("tflite", "tensorflow"):
        with pytest.raises(ConversionFailed, match=r"its graph holds .*ReadFile"):
            convert(plain, tmp_path / target, (target,), replace(QUICK, max_rows=1, inputs=("x:BYTES:1",)))


def test_an_operation_that_tensorflow_does_not_know_is_refused(words):
    assert not allowed("Frobnicate") and allowed("MatMul") and not allowed("XlaCallModule")
    graph = read(words).meta_graphs[0]
    graph.graph_def.library.function[0].node_def[0].op = "Frobnicate"
    assert "Frobnicate" in effects(graph)


def test_what_loads_the_model_reads_no_other_checkpoint(tmp_path):
    folder = saved(tmp_path / "m", lambda x: {"y": tf.strings.length(x) + weight}, weight=(weight := tf.Variable(1)))
    graph = read(folder).meta_graphs[0]
    assert effects(graph) == ()
    graph.saver_def.filename_tensor_name = "elsewhere:0"
    assert effects(graph) == ("RestoreV2 of a path that is not the loader's",)


def chained(graph, count, calls):
    """`graph` with functions that call the next one, `calls` times each, with the arguments in another order."""
    library = graph.graph_def.library
    for i in range(count):
        function = library.function.add()
        function.signature.name = f"f{i}"
        for name in ("a", "b", "c", "d", "e", "f", "g", "h"):
            function.signature.input_arg.add().name = name
        for turn in range(calls):
            node = function.node_def.add()
            node.name, node.op = f"call{turn}", "StatefulPartitionedCall"
            node.attr["f"].func.name = f"f{i + 1}"
            node.input[:] = "bacdefgh" if turn else "bcdefgha"
    first = graph.graph_def.node.add()
    first.name, first.op = "first", "StatefulPartitionedCall"
    first.attr["f"].func.name = "f0"
    first.input[:] = ["asset_path_initializer"] * 4 + ["other"] * 4
    graph.collection_def["saved_model_main_op"].node_list.value.append("first")
    return graph


def test_a_search_ends_whatever_calls_what(words, monkeypatch):
    assert effects(chained(read(words).meta_graphs[0], 100, 2)) == ()
    deep = chained(read(words).meta_graphs[0], 5000, 1)
    assert effects(deep) == ("more calls than can be followed",)
    monkeypatch.setattr(tf_effects, "MOST_CALLS", 200)
    assert effects(chained(read(words).meta_graphs[0], 100, 2)) == ("more calls than can be followed",)


def test_an_artifact_is_searched_where_it_is_served(tmp_path, monkeypatch):
    artifact = in_saved_model(tmp_path / "artifact")
    model = read(artifact.model_path.parent)
    node = model.meta_graphs[0].graph_def.node.add()
    node.name, node.op = "peek", "ReadFile"
    artifact.model_path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineFailed, match="its graph holds ReadFile, which may do more than compute"):
        open_runtime(artifact)
    node.input.append("name")
    name = model.meta_graphs[0].graph_def.node.add()
    name.name, name.op = "name", "Placeholder"
    name.attr["dtype"].type = tf.string.as_datatype_enum
    artifact.model_path.write_bytes(model.SerializeToString())
    monkeypatch.setenv(TRUST, "1")
    assert open_runtime(artifact).run((np.ones((2, 4), "f4"),))[0].shape == (2, 3)


def test_a_second_graph_beside_the_one_that_is_searched_is_refused(words, tmp_path):
    folder = saved(tmp_path / "m", lambda x: {"y": x})
    (folder / "saved_model.cpb").write_bytes(b"")
    with pytest.raises(ConversionFailed, match=r"a second graph, saved_model\.cpb"):
        convert(folder, tmp_path / "out", ("tensorflow",), QUICK)


def test_a_trusted_model_is_converted_and_its_report_says_what_serving_it_takes(tmp_path):
    def call(x):
        tf.raw_ops.PrintV2(input=tf.constant("never"), output_stream="log(info)")
        return {"y": x * 2}

    folder = saved(tmp_path / "m", call, [tf.TensorSpec([None, 2], tf.float32, name="x")])
    with pytest.raises(ConversionFailed, match=r"its graph holds PrintV2.*--trust-pickle"):
        convert(folder, tmp_path / "out", ("tensorflow",), QUICK)
    (artifact,) = convert(folder, tmp_path / "out", ("tensorflow",), replace(QUICK, trust_pickle=True))
    assert any(f"{TRUST}=1" in note for note in artifact.parity()["notes"])
    with pytest.raises(EngineFailed, match="PrintV2"):
        open_runtime(artifact)


def test_tflite_operators_from_elsewhere_are_refused(tmp_path):
    flatbuffers = pytest.importorskip("flatbuffers")
    from ai_edge_litert import schema_py_generated as schema

    artifact = in_lite(tmp_path / "artifact")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(artifact.model_path.read_bytes(), 0))
    for name in ("FlexReadFile", "Another"):
        code = model.operatorCodes[0]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
        code.customCode = name
        for step in model.subgraphs[0].operators:
            step.builtinOptionsType, step.builtinOptions = 0, None
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        artifact.model_path.write_bytes(bytes(builder.Output()))
        with pytest.raises(EngineFailed, match=r"model\.tflite: .*holds (FlexReadFile|Another)"):
            open_runtime(artifact)


def rewritten(source, target, change):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="d")]).save(folder / "m.keras")
    return folder / "m.keras"


def kernel(content, change):
    """The weights file with `change(group)` applied to the group that the kernel is in."""
    buffer = io.BytesIO(content)
    with h5py.File(buffer, "r+") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if getattr(item, "shape", None) == (4, 3) else None)
        group, _, leaf = names[0].rpartition("/")
        del file[group][leaf]
        change(file[group], leaf)
    return buffer.getvalue()


def test_keras_weights_cannot_lie_in_other_files(dense, tmp_path):
    (tmp_path / "secret").write_bytes(np.ones((4, 3), "f4").tobytes())
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["kernel"] = np.ones((4, 3), "f4")

    def link(group, leaf):
        group[leaf] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/kernel")

    def storage(group, leaf):
        group.create_dataset(leaf, (4, 3), "f4", external=[(str(tmp_path / "secret"), 0, 48)])

    def virtual(group, leaf):
        layout = h5py.VirtualLayout((4, 3), "f4")
        layout[...] = h5py.VirtualSource(str(tmp_path / "other.h5"), "kernel", (4, 3))
        group.create_virtual_dataset(leaf, layout)

    for i, change in enumerate((link, storage, virtual)):
        file = rewritten(
            dense, tmp_path / f"{i}.keras", lambda n, c, change=change: kernel(c, change) if n.endswith(".h5") else c
        )
        with pytest.raises(ConversionFailed, match=rf"{i}\.keras: "):
            convert(file, tmp_path / "out", ("tensorflow",), QUICK)


def test_keras_layers_that_read_files_are_refused(tmp_path):
    (tmp_path / "words.txt").write_text("a\nb\n")
    layer = keras.layers.StringLookup(vocabulary=["a", "b"], name="look")
    keras.Sequential([keras.Input((1,), dtype="string"), layer]).save(tmp_path / "m.keras")

    def points_elsewhere(name, content):
        if name != "config.json":
            return content
        config = json.loads(content)
        look = next(entry for entry in config["config"]["layers"] if entry["class_name"] == "StringLookup")
        look["config"]["vocabulary"] = str(tmp_path / "words.txt")
        return json.dumps(config).encode()

    file = rewritten(tmp_path / "m.keras", tmp_path / "n.keras", points_elsewhere)
    with pytest.raises(ConversionFailed, match=r"n\.keras: Keras cannot load it"):
        convert(file, tmp_path / "out", ("tensorflow",), QUICK)


def test_a_keras_configuration_that_names_other_code_is_refused(dense, tmp_path):
    def calls(name, content):
        if name != "config.json":
            return content
        config = json.loads(content)
        config["config"]["layers"][1] = {
            "module": "os",
            "class_name": "system",
            "config": {"command": "true"},
            "registered_name": "system",
        }
        return json.dumps(config).encode()

    with pytest.raises(ConversionFailed, match=r"m\.keras: Keras cannot load it"):
        convert(rewritten(dense, tmp_path / "m.keras", calls), tmp_path / "out", ("tensorflow",), QUICK)
