from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
from deployments.memory import keep_freed_memory
assert keep_freed_memory()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
parts = [bytes(200_000)] * 3
b"".join(parts)
before = faults()
for _ in range(50):
    b"".join(parts)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have their own ways")
def test_a_body_is_put_where_the_last_one_was() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50  # 147 pages each, if they were new every time
