"""Proofs are forked from a process that has imported the frameworks: see `forked_proofs`."""

from importlib.util import find_spec

import pytest

from converters import isolated
from forked_proofs import ForkedProofs

USED = ("numpy", "onnxruntime", "tensorflow", "ai_edge_litert.interpreter", "converters.profile")


@pytest.fixture(scope="session", autouse=True)
def proofs_are_forked():
    forks = ForkedProofs(*(name for name in USED if find_spec(name.partition(".")[0])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolated, "subprocess", forks)
        yield
    forks.close()
