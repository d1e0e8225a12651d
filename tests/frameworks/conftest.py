"""Every test here proves in forks: to import TensorFlow for each proof takes longer than everything else."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def proofs_are_forked(forked_proofs):
    yield
