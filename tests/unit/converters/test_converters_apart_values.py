"""What crosses to the process of a conversion, and what is told of its end."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from cluster.errors import InvalidRequest
from converters.candidate import Options
from converters.isolated import LAST_LINES, LINE_CHARACTERS, ending

OPTIONS = Options(
    factory="net:build",
    sample=Path("a.npz"),
    inputs=("x:FP32:N,3",),
    calibrate=Path("b.npz"),
    dynamic=("x:1=1..8",),
    evaluate=Path("c.npz"),
    labels=("cat", "dog"),
    max_drop=0.01,
    tolerance={"sqnr": 20.0},
    timing_cache=Path("d.cache"),
    trust_pickle=True,
    timeout_s=60.0,
)


@pytest.mark.parametrize("options", [Options(), OPTIONS])
def test_options_come_out_of_json_as_they_went_in(options):
    assert Options.from_json(json.loads(json.dumps(options.to_json()))) == options


def test_every_option_that_is_a_path_or_a_tuple_comes_back_as_one():
    back = Options.from_json(json.loads(json.dumps(OPTIONS.to_json())))
    assert all(type(getattr(back, each.name)) is type(getattr(OPTIONS, each.name)) for each in fields(Options))


def test_a_factory_that_has_no_name_cannot_cross():
    with pytest.raises(InvalidRequest, match="another process can import"):
        Options(factory=lambda: None).to_json()


@pytest.mark.parametrize(
    ("code", "printed", "told"),
    [
        (-11, b"", "was killed by SIGSEGV"),
        (-9, b"", "was killed by SIGKILL (out of memory?)"),
        (-250, b"", "was killed by signal 250"),
        (1, b"one\n\ntwo\nthree\nfour\n", "failed (1): two | three | four"),
        (-6, b"a\x1b[31mb\xff", "was killed by SIGABRT: a [31mb\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_an_end_is_one_line_with_the_last_words(code, printed, told):
    assert ending(code, printed) == told


def test_last_words_have_an_end():
    assert len(ending(1, b"x" * 10_000 + b"\n" + b"y" * 10_000)) < LAST_LINES * (LINE_CHARACTERS + 10)
