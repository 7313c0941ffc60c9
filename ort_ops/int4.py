"""4-bit weights as ONNX stores them: packing, and the reference of blocked `DequantizeLinear`."""

import math

import numpy as np
import numpy.typing as npt

Int8 = npt.NDArray[np.int8]
UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]


def pack_int4(codes: Int8) -> UInt8:
    """Bytes (ceil(size / 2),) of an ONNX INT4 tensor, for codes in [-8, 7] of any shape.

    Elements go in row-major order over the flattened tensor, the first of a pair into the low four
    bits; an odd count ends with a zero nibble (ONNX, `TensorProto.raw_data`).
    """
    if codes.size and (codes.min() < -8 or codes.max() > 7):
        raise ValueError(f"codes from {codes.min()} to {codes.max()} do not fit INT4 [-8, 7]")
    nibbles = codes.reshape(-1).view(np.uint8) & 0x0F
    pairs = np.pad(nibbles, (0, nibbles.size % 2)).reshape(-1, 2)
    packed: UInt8 = pairs[:, 0] | (pairs[:, 1] << 4)
    return packed


def unpack_int4(packed: UInt8, shape: tuple[int, ...]) -> Int8:
    """Codes int8 of the given shape: the inverse of `pack_int4`."""
    size = math.prod(shape)
    if packed.shape != ((size + 1) // 2,):
        raise ValueError(f"{packed.shape} bytes do not hold {size} INT4 values of shape {shape}")
    nibbles = np.stack([packed & 0x0F, packed >> 4], axis=-1).reshape(-1)[:size]
    signed: Int8 = (nibbles ^ 8).astype(np.int8) - np.int8(8)  # two's complement of four bits
    return signed.reshape(shape)


def dequantize_blocks(codes: Int8, scales: Float32, block: int) -> Float32:
    """Weights (K, N) of codes (K, N) and scales (ceil(K / block), N): row k uses scale k // block.

    Equals ONNX `DequantizeLinear(axis=0, block_size=block)` without zero point, exactly: one fp32
    product an element.
    """
    depth, width = codes.shape
    if scales.shape != (-(-depth // block), width):
        raise ValueError(
            f"scales {scales.shape} do not fit codes {codes.shape} in blocks of {block}"
        )
    return codes.astype(np.float32) * scales.astype(np.float32).repeat(block, axis=0)[:depth]
