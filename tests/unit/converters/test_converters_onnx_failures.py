import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as status

from cluster.errors import EngineFailed, InvalidRequest
from converters.onnx.failures import brief, failure_of

NODE = "Non-zero status code returned while running {} node. Name:'/blocks/0/op' Status Message: "
PLACE = "/src/core/providers/cpu/{}.h:84 "


def fail(text, op="Add", kind=status.Fail, name="FAIL"):
    return kind(f"[ONNXRuntimeError] : 1 : {name} : {NODE.format(op) if op else ''}{text}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            PLACE.format("math/broadcast")
            + "void ort::Init(ptrdiff_t, ptrdiff_t) axis == 1 || axis == n was false. 2 by 3",
            "2 by 3",
        ),
        (
            PLACE.format("pool") + "long ort::Size(long, long) const out >= 0 was false. It is negative.",
            "It is negative.",
        ),
        (PLACE.format("gather") + "void ort::core(const T*) [with T = int; U = int] Out of range", "Out of range"),
        (
            PLACE.format("kernel")
            + "virtual V* ort::Out(int) [ONNXRuntimeError] : 1 : FAIL : tensor.cc:57 Size must be >= 0",
            "must be >= 0",
        ),
        ("matmul_helper.h:59 Compute dimension mismatch", "dimension mismatch"),
        ("k argument [5] is too large", "k argument [5] is too large"),
        ("", "it gave no reason"),
    ],
)
def test_a_node_that_refuses_is_the_callers_mistake_in_words_without_places(text, reason):
    for kind in (status.Fail, status.RuntimeException, status.InvalidArgument):
        error = failure_of(fail(text, kind=kind))
        assert isinstance(error, InvalidRequest)
        assert error.message == f"the model refuses these inputs: Add: {reason}"


@pytest.mark.parametrize(
    "text",
    [
        PLACE.format("bfc_arena")
        + "void* ort::Allocate(size_t) Failed to allocate memory for requested buffer of size 9",
        PLACE.format("bfc_arena")
        + "void* ort::Extend(size_t) Available memory of 1 is smaller than requested bytes of 9",
        "std::bad_alloc",
        "CUDA failure 700: an illegal memory access ; GPU=0 ; hostname=host-1 ; file=/src/a.cc ; line=5 ; expr=x",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=host-1",
        "CUDNN failure 8: CUDNN_STATUS_EXECUTION_FAILED ; GPU=0 ; hostname=host-1",
    ],
)
def test_memory_and_the_device_are_the_servers_failures_and_name_neither_host_nor_file(text):
    for kind in (status.Fail, status.RuntimeException):
        error = failure_of(fail(text, kind=kind))
        assert isinstance(error, EngineFailed)
        assert "host-1" not in error.message
        assert "/src" not in error.message


@pytest.mark.parametrize(
    "error",
    [
        fail("Could not find an implementation for the node", kind=status.NotImplemented, name="NOT_IMPLEMENTED"),
        fail("the device is gone", kind=status.EPFail, name="EP_FAIL"),
        fail("Exiting due to terminate flag being set to true.", op=None),
        fail("the session is not initialized", op=None),
        MemoryError("no memory"),
        ValueError("Required inputs are missing"),
    ],
)
def test_what_no_input_explains_is_an_engine_failure(error):
    assert isinstance(failure_of(error), EngineFailed)


def test_a_word_of_the_place_does_not_make_a_refusal_an_engine_failure():
    text = "/src/core/providers/cuda/math/binary.h:9 Status ort::cuda::Prepare(CUDA error*) a == b was false. 2 by 3"
    assert isinstance(failure_of(fail(text)), InvalidRequest)


def test_a_node_inside_a_loop_is_the_one_that_is_named():
    error = failure_of(fail(NODE.format("MatMul") + "matmul_helper.h:59 Compute dimension mismatch", op="Loop"))
    assert error.message == "the model refuses these inputs: MatMul: dimension mismatch"


def test_a_message_is_one_line_of_bounded_length():
    for error in (failure_of(fail("long\nwords " * 500)).message, brief(fail("long\nwords " * 500))):
        assert "\n" not in error
        assert len(error) < 500
