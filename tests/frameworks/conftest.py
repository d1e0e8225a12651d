"""Proofs are forked from a process that has imported the frameworks: see `forked_proofs`."""

from importlib.util import find_spec

import pytest

from converters import isolated
from forked_proofs import ForkedProofs

USED = ("numpy", "onnxruntime", "tensorflow", "ai_edge_litert.interpreter", "converters.profile")


def is_installed(name: str) -> bool:
    """The folder `tensorflow` of these tests is found too, as a package without a file of its own."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


@pytest.fixture(scope="session", autouse=True)
def proofs_are_forked():
    forks = ForkedProofs(*(name for name in USED if is_installed(name.partition(".")[0])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolated, "subprocess", forks)
        yield
    forks.close()
