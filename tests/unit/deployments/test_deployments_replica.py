from types import SimpleNamespace

import pytest

from deployments.replica import used_device


@pytest.mark.parametrize(
    ("provider", "device"),
    [
        ("CPUExecutionProvider", "cpu"),
        ("CUDAExecutionProvider", "gpu"),
        ("TensorrtExecutionProvider", "tensorrt"),
    ],
)
def test_what_batches_cost_by_tensorrt_is_not_taken_for_what_they_cost_by_cuda(provider, device):
    assert used_device(SimpleNamespace(provider=provider)) == device
