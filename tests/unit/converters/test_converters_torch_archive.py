"""What an archive of torch may look like, and what TorchScript in it may say and hold."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import warnings
import zipfile

import pytest

from cluster.errors import ConversionFailed
from converters.torch import archive as torch_archive
from converters.torch.archive import reading
from converters.torch.script_code import plain_class, unsafe
from converters.torch.script_data import Refused, check_pickle


def write(path, members, packed=()):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as made:
        warnings.simplefilter("ignore")  # zipfile minds names that come twice
        for name, content in members:
            made.writestr(name, content, zipfile.ZIP_DEFLATED if name in packed else zipfile.ZIP_STORED)
    return path


def refused(path):
    with pytest.raises(ConversionFailed) as caught, reading(path, "test"):
        pass
    return caught.value.message


def test_a_copy_holds_what_was_read_and_nothing_else(tmp_path):
    source = write(tmp_path / "a.pt", [("m/", b""), ("m/a", b"1"), ("m/b", b"2"), ("m/c", b"3")])
    source.write_bytes(b"before" + source.read_bytes() + b"\0" * 10)
    target = io.BytesIO()
    with reading(source, "test") as archive:
        archive.write(target, [("a", None), ("c", b"new")])
    with zipfile.ZipFile(target) as copy:
        assert {name: copy.read(name) for name in copy.namelist()} == {"archive/a": b"1", "archive/c": b"new"}
    assert target.getvalue().startswith(b"PK\x03\x04")


def test_listings_that_two_readers_could_take_differently_are_refused(tmp_path):
    assert "one name" in refused(write(tmp_path / "twice", [("m/a", b"1"), ("m/a", b"2")]))
    assert "one name" in refused(write(tmp_path / "case", [("m/a", b"1"), ("m/A", b"2")]))
    assert "one folder" in refused(write(tmp_path / "folders", [("m/a", b"1"), ("n/b", b"2")]))
    assert "one folder" in refused(write(tmp_path / "none", []))


def test_a_small_file_cannot_unpack_to_a_large_one(tmp_path, monkeypatch):
    assert "'a' is compressed" in refused(write(tmp_path / "bomb", [("m/a", b"\0" * 100_000)], packed=("m/a",)))
    file = write(tmp_path / "overlap", [("m/a", b"1" * 1000), ("m/b", b"2")])
    raw = bytearray(file.read_bytes())
    second = raw.rindex(b"PK\x01\x02")
    raw[second + 20 : second + 28] = struct.pack("<II", 5000, 5000)  # sizes in the listing's second entry
    file.write_bytes(raw)
    assert "overlap" in refused(file)
    monkeypatch.setattr(torch_archive, "MAX_ARCHIVE_BYTES", 10)
    assert "more than" in refused(write(tmp_path / "large", [("m/a", b"1" * 11)]))


def test_damage_is_one_line(tmp_path):
    file = write(tmp_path / "m", [("m/a", b"1" * 100)])
    file.write_bytes(file.read_bytes().replace(b"1" * 100, b"1" * 99 + b"2"))
    with pytest.raises(ConversionFailed, match="not a test archive") as caught, reading(file, "test") as archive:
        archive.read("a", 1000)
    assert "\n" not in caught.value.message
    (tmp_path / "n").write_bytes(b"PK nothing")
    assert "not a test archive" in refused(tmp_path / "n")


PLAIN = """class Net(Module):
  __parameters__ = ["weight", ]
  weight : Tensor
  ops : int
  def forward(self: __torch__.Net,
    x: Tensor) -> Tuple[Tensor, str]:
    scale = 1.
    body = self.body
    _0 = getattr(body, "0")
    _1 = (_0).forward(torch.add(x, CONSTANTS.c0, alpha=1e-05), )
    if torch.gt(torch.len(ops.prim.data(x)), 2):
      ops.prim.RaiseException("odd \\n \\"shape\\"", "builtins.ValueError")
    return (__torch__.torch.nn.functional.relu(_1, ), "a save or load")
"""


def test_what_torch_writes_is_plain():
    assert unsafe(PLAIN) is None


@pytest.mark.parametrize(
    "code",
    [
        'torch.from_file("x")',
        'torch . save(x, "y")',
        "x.to_here()",
        "ops.evil.run(x)",
        "ops . evil . run(x)",
        'getattr(ops, "evil")',
        'getattr(getattr(ops, "evil"), "run")',
        'getattr(x, "sa\\166e")',
        'getattr(x, "from_file")("y")',
        "a = ops",
        "a = torch",
        "a = __torch__.torch",
        "a : __torch__.torch.classes.dist_c10d.FileStore",
        "a = __torch__ . torch .\n classes.dist_c10d.FileStore",
        'getattr(__torch__.torch, "classes")',
        "rpc_sync(x)",
        "x = 1 # ops",
        "x = 'ops'",
        'x = """ops"""',
        'x = r"a"',
        "x = \\\n ops",
        "x = \u00e9",
        "x = 1ops",
        "x = 1.\n    ops.evil.run(x)",
        "x = 0x1.\n    __torch__.torch.classes.dist_c10d.FileStore()",
        'x = 1.\n    getattr(ops, "evil")',
        'getattr((torch.autograd), "from_" "file")("y")',
        'getattr(x, "from_file", "0")',
    ],
)
def test_what_reaches_out_is_found_however_it_is_written(code):
    assert unsafe(f"{PLAIN}  def f(self):\n    {code}\n") is not None


def test_classes_of_c_plus_plus_are_refused_but_for_packed_weights():
    assert plain_class("__torch__.net.Layer")
    assert plain_class("__torch__.torch.classes.quantized.LinearPackedParamsBase")
    assert not plain_class("__torch__.torch.classes.dist_c10d.FileStore")
    assert not plain_class("os.system")


def pickled(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def storage(count, element=b"ctorch\nFloatStorage\n"):
    return b"(X\x07\x00\x00\x00storage" + element + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + count + b"tQ"


def tensor(count, sizes=b"K\x02\x85", strides=b"K\x01\x85"):
    rest = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(count) + b"K\x00" + sizes + strides + rest + b"tR"


OBJECT = b"c__torch__.net\nLayer\n)\x81"


def test_plain_data_passes():
    check_pickle(pickled(OBJECT, b"}(X\x01\x00\x00\x00w", tensor(b"K\x02"), b"ub"), {"0": 8})
    check_pickle(pickled(b"ctorch.jit._pickle\nbuild_intlist\n](K\x01K\x02e\x85R"), {})
    check_pickle(pickle.dumps((1, 2.5, None, True, [1], {"a": "b"}), 2), {})


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (pickle.dumps(print, 2), "__builtin__.print"),
        (pickled(b"cos\nsystem\nX\x04\x00\x00\x00true\x85R"), "os.system"),
        (pickled(b"ctorch.distributed.rpc\nrref\n)R"), "rpc"),
        (pickled(b"c__torch__.torch.classes.dist_c10d\nFileStore\n)\x81}b"), "FileStore"),
        (pickled(b"ctorch._utils\n_rebuild_sparse_tensor\n)R"), "sparse"),
        (pickled(tensor(b"M\x00\x10")), "4096 elements"),
        (pickled(storage(b"M\x00\x10", element=b"K\x00")), "no plain storage"),
        (pickled(storage(b"G" + b"\0" * 8)), "no plain storage"),
        (pickled(tensor(b"K\x02", sizes=b"K\x09\x85")), "larger than its storage"),
        (pickled(tensor(b"K\x02", strides=b"J\xff\xff\xff\xff\x85")), "no plain storage"),
        (pickled(tensor(b"K\x02"), b"}(X\x04\x00\x00\x00sizeM\x00\x10ub"), "a state"),
        (pickled(b"ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb"), "a state"),
        (pickled(b"ctorch.jit._pickle\nbuild_intlist\n](G\x00\x00\x00\x00\x00\x00\x00\x00e\x85R"), "other values"),
        (pickled(b"K\x01r\xff\xff\xff\x7f"), "more values"),
        (pickled(b"\x8c\x01a"), "SHORT_BINUNICODE"),
        (pickled(b"K\x01K\x01\x85R"), "no data that torch writes"),
        (pickled(b"(K\x01d"), "no data that torch writes"),
        (pickled(b"h\x05"), "no data that torch writes"),
        (pickled(b"X\xff\xff\xff\x7fa"), "no data that torch writes"),
    ],
)
def test_data_that_does_more_than_be_data_is_refused(content, what):
    with pytest.raises(Refused, match=what):
        check_pickle(content, {"0": 8})


def test_nothing_is_called_while_data_is_checked():
    class Sprung:
        def __reduce__(self):
            return (pytest.fail, ("it was called",))

    with pytest.raises(Refused):
        check_pickle(pickle.dumps(collections.OrderedDict(a=Sprung()), 2), {})
