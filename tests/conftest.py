"""Makes the modules beside this file (`onnx_models`, ...) importable from every test; proofs in forks for some."""

from importlib.util import find_spec

import pytest

from converters import isolated
from forked_proofs import ForkedProofs


def is_installed(name):
    """Not so the folder `frameworks/tensorflow`, which is found too, as a package without a file of its own."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


@pytest.fixture(scope="session")
def forks():
    """What forks proofs, for the whole session."""
    used = ("numpy", "onnxruntime", "torch", "tensorflow", "ai_edge_litert.interpreter", "converters.proof.profile")
    made = ForkedProofs(*(name for name in used if is_installed(name.partition(".")[0])))
    yield made
    made.close()


@pytest.fixture(scope="module")
def forked_proofs(forks):
    """Proofs of the module's tests are forked: see the module `forked_proofs`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolated, "subprocess", forks)
        yield
