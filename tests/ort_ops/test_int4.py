"""INT4 packing and blocked de-quantization against ONNX itself."""

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from ort_ops.int4 import dequantize_blocks, pack_int4, unpack_int4


def random_codes(shape: tuple[int, ...], seed: int = 0) -> npt.NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-8, 8, shape, dtype=np.int8)


def int4_tensor(codes: npt.NDArray[np.int8]) -> onnx.TensorProto:
    raw = pack_int4(codes).tobytes()
    return TensorProto(name="q", data_type=TensorProto.INT4, dims=codes.shape, raw_data=raw)


def run_dequantize_linear(
    codes: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], block: int
) -> npt.NDArray[np.float32]:
    """ONNX Runtime's answer for the packed codes."""
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=block)
    output = helper.make_tensor_value_info("w", TensorProto.FLOAT, codes.shape)
    weights = [int4_tensor(codes), numpy_helper.from_array(scales, "s")]
    graph = helper.make_graph([node], "g", [], [output], weights)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (result,) = session.run(None, {})
    return np.asarray(result, dtype=np.float32)


@given(st.lists(st.integers(-8, 7), max_size=33))
def test_unpack_inverts_pack(values: list[int]) -> None:
    codes = np.array(values, dtype=np.int8)
    packed = pack_int4(codes)
    assert packed.nbytes == (len(values) + 1) // 2
    np.testing.assert_array_equal(unpack_int4(packed, codes.shape), codes)


def test_the_first_of_a_pair_goes_into_the_low_nibble() -> None:
    assert pack_int4(np.array([1, -1, 7], dtype=np.int8)).tolist() == [0xF1, 0x07]


@pytest.mark.parametrize("shape", [(4, 6), (3, 5), (2, 3, 5)])
def test_onnx_reads_what_is_packed(shape: tuple[int, ...]) -> None:
    codes = random_codes(shape)
    read = numpy_helper.to_array(int4_tensor(codes)).astype(np.int8)
    np.testing.assert_array_equal(read, codes)


def test_a_transposed_array_is_packed_in_its_own_order() -> None:
    codes = random_codes((3, 4)).T
    np.testing.assert_array_equal(pack_int4(codes), pack_int4(np.ascontiguousarray(codes)))


@pytest.mark.parametrize(
    ("depth", "width", "block"), [(64, 6, 32), (128, 3, 64), (256, 5, 128), (80, 7, 32), (7, 5, 16)]
)
def test_dequantize_blocks_is_onnx_dequantize_linear(depth: int, width: int, block: int) -> None:
    codes = random_codes((depth, width))
    rng = np.random.default_rng(1)
    scales = rng.uniform(1e-3, 1, (-(-depth // block), width)).astype(np.float32)
    expected = run_dequantize_linear(codes, scales, block)
    np.testing.assert_array_equal(dequantize_blocks(codes, scales, block), expected)


def test_wrong_values_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="from -9 to 0 do not fit"):
        pack_int4(np.array([-9, 0], dtype=np.int8))
    with pytest.raises(ValueError, match="do not hold 5"):
        unpack_int4(np.zeros(2, np.uint8), (5,))
    with pytest.raises(ValueError, match="blocks of 4"):
        dequantize_blocks(np.zeros((8, 2), np.int8), np.ones((1, 2), np.float32), 4)
