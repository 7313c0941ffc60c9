"""Random quantized linears: tensors, ONNX model, expected outputs and their error bounds."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort

from ort_ops.function_body import DOMAIN, OPSET
from ort_ops.int4 import pack_int4
from ort_ops.linear_w4a8.op import (
    LinearOp,
    Weight,
    activation_codes,
    function_body,
    reference,
    silu,
)

U = 2.0**-24  # relative error of one rounding to fp32
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LinearCase:
    """A node with its constant inputs."""

    op: LinearOp
    group: int
    activation_group: int
    step: float
    weights: tuple[Weight, ...]
    bias: Float32
    exact: bool  # scales are powers of two, everything else whole multiples: see `exact_rows`
    half: bool = False  # scales are stored in fp16
    kept: bool = False  # x is not rounded: 16 bits on GPUs

    @property
    def shape(self) -> tuple[int, int]:
        """Inputs K and outputs N."""
        depth, width = self.weights[0].codes.shape
        return depth, width

    def expected(self, x: Float32) -> Float64:
        """The reference's y, of x as it is where that is `kept`."""
        if self.kept:
            outputs = [self._product(x, w, body=False)[0] for w in self.weights]
            y = silu(outputs[0]) * outputs[1] if self.op.gated else outputs[0]
            return y.reshape(*x.shape[:-1], self.shape[1])
        bias = None if self.op.gated else self.bias
        return reference(
            self.op, x, self.weights, bias, self.group, self.activation_group, self.step
        )

    def bound(self, x: Float32, body: bool) -> Float64:
        """How far y of a kernel, or of the function body, may be from `expected`.

        fp32 rounds a term at most K + 6 times: its value, two scales, products, K sums, the bias.
        Nothing is rounded where all are whole multiples of one number and stay below 2^24 of it.
        Tensor cores may cut off where fp32 rounds: twice the error, of products of a `kept` x.
        """
        parts = [self._product(x, w, body) for w in self.weights]
        if not self.op.gated:
            return parts[0][1].reshape(*x.shape[:-1], self.shape[1])
        (gate, off), (up, up_off) = parts
        gate_out = np.abs(silu(gate))
        # of the kernel: 9 roundings, see harness.cc; of ONNX Runtime's Sigmoid: 3.1 U measured
        slip = 1.1 * off + 9.1 * U * gate_out + (4 * U * np.abs(gate) if body else 0) + 1e-35
        whole = (gate_out + slip) * (np.abs(up) + up_off) * (1 + 2 * U)
        error: Float64 = whole - gate_out * np.abs(up)
        return error.reshape(*x.shape[:-1], self.shape[1])

    def _product(self, x: Float32, weight: Weight, body: bool) -> tuple[Float64, Float64]:
        """x · W (M, N) + bias and the bound of its error."""
        depth = self.shape[0]
        rows = x.reshape(-1, depth)
        codes, by_input, unit = self._inputs(rows)
        weight_scales = weight.scales.astype(np.float64)
        if not self.op.channel:
            weight_scales = weight_scales.repeat(self.group, axis=0)[:depth]
        matrix = weight.integers(self.group) * weight_scales
        bias = 0.0 if self.op.gated else self.bias.astype(np.float64)
        magnitude = (np.abs(codes) * by_input) @ np.abs(matrix) + np.abs(bias)
        roundings = (depth + 6) * U * (2 if self.kept else 1)
        error = magnitude * roundings / (1 - roundings)
        if self.exact:
            error[magnitude < 2**24 * EXACT_SCALE * unit] = 0
        elif body and self.op.activation_bits == 16:  # keeps x as it is
            error += 0.51 * by_input @ np.abs(matrix)
        return (codes * by_input) @ matrix + bias, error

    def _inputs(self, rows: Float32) -> tuple[Float64, Float64, float]:
        """Codes and scales (M, K) that kernels multiply, and the least unit of an `exact` x."""
        if self.kept:
            return rows.astype(np.float64), np.ones(rows.shape), LARGEST * self.step
        codes, scales = activation_codes(rows, self.op, self.activation_group, self.step)
        by_input = scales.astype(np.float64).repeat(self.activation_group, axis=1)
        return codes.astype(np.float64), by_input, float(scales.min(initial=np.inf))

    def model(self, rank: int = 2, constant: bool = True) -> bytes:
        """The node, and its function body, as a model of x (…, K); else the codes are an input."""
        depth, width = self.shape
        axes: list[int | str] = [f"axis_{i}" for i in range(rank - 1)]
        x = ir.Value(
            name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([*axes, depth])
        )
        given = [value for i, w in enumerate(self.weights) for value in self._initializers(w, i)]
        if not self.op.gated:
            given.append(_initializer("bias", ir.tensor(self.bias)))
        attributes = {
            "group": self.group, "activation_group": self.activation_group, "step": self.step,
        }  # fmt: skip
        node = ir.node(self.op.name, [x, *given], attributes=attributes, domain=DOMAIN)
        y = node.outputs[0]
        y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape([*axes, width])
        inputs = [x]
        if not constant:
            inputs.append(given.pop(0))
            inputs[1].const_value = None
        opsets = {"": OPSET, DOMAIN: 1}
        graph = ir.Graph(
            inputs, [y], nodes=[node], initializers=given, name="g", opset_imports=opsets
        )
        whole = ir.Model(graph, ir_version=11, functions=[function_body(self.op)])
        serialized: bytes = ir.serde.serialize_model(whole).SerializeToString()
        return serialized

    def _initializers(self, weight: Weight, number: int) -> list[ir.Value]:
        codes: ir.TensorProtocol = ir.tensor(weight.codes)
        if self.op.weight_bits == 4:
            packed = pack_int4(weight.codes)
            codes = ir.PackedTensor(packed, ir.DataType.INT4, shape=ir.Shape(weight.codes.shape))
        kind = np.float16 if self.half else np.float32
        tensors = {"codes": codes, "scales": ir.tensor(weight.scales.astype(kind))}
        if weight.steps is not None:
            tensors["steps"] = ir.tensor(weight.steps)
        return [_initializer(f"{name}_{number}", tensor) for name, tensor in tensors.items()]


def _initializer(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    tensor.name = name
    kind = ir.TensorType(tensor.dtype)
    shape = ir.Shape(tuple(tensor.shape.numpy()))
    return ir.Value(name=name, type=kind, shape=shape, const_value=tensor)


EXACT_SCALE = 2.0**-4  # of weights, or twice that
LARGEST = 4.0  # |x| in each run that shares a scale


def random_case(
    rng: np.random.Generator,
    op: LinearOp,
    shape: tuple[int, int],
    group: int,
    activation_group: int,
    exact: bool,
) -> LinearCase:
    """A case of `op` with codes and steps of the whole range."""
    if op.channel:
        activation_group = shape[0]
    # exactly: up to 2^7 in codes of 8 bits, which are clipped, and 2^14 of 16, which a float holds
    bits = {4: 3, 8: 7, 16: 14}[op.activation_bits]
    share = 1.0 if op.activation_bits == 16 else rng.uniform(0.6, 1)
    step = 2.0**-bits if exact else float(np.float32(share / op.top))
    half = bool(rng.integers(2))
    weights = tuple(_random_weight(rng, op, shape, group, exact, half) for _ in range(1 + op.gated))
    size = EXACT_SCALE * LARGEST * step if exact else 0.01
    bias = (rng.integers(-99, 100, shape[1]) * size).astype(np.float32)
    return LinearCase(op, group, activation_group, step, weights, bias, exact, half)


def _random_weight(
    rng: np.random.Generator,
    op: LinearOp,
    shape: tuple[int, int],
    group: int,
    exact: bool,
    half: bool,
) -> Weight:
    groups = -(-shape[0] // group)
    top = 2 if exact and op.activation_bits == 16 else 2 ** (op.weight_bits - 1)
    codes = rng.integers(-top, top, shape).astype(np.int8)
    size = (shape[1],) if op.channel else (groups, shape[1])
    # outputs of about 1, where silu bends
    scales = rng.uniform(0.5, 1.5, size) * 2 / (top * np.sqrt(shape[0]))
    if exact:
        scales = rng.integers(1, 3, size) * EXACT_SCALE
    if half:
        scales = scales.astype(np.float16)
    steps = rng.integers(-15, 16, (groups, shape[1])).astype(np.int8)  # 8 * 15 fits
    return Weight(codes, scales.astype(np.float32), steps if op.steps else None)


def random_rows(rng: np.random.Generator, case: LinearCase, shape: tuple[int, ...]) -> Float32:
    """x (…, K): `exact_rows`, or normal with a large channel and, as the last row, zeros."""
    if case.exact:
        return exact_rows(rng, case, shape)
    x = rng.normal(size=(*shape, case.shape[0])).astype(np.float32)
    x[..., 0] *= 20
    x.reshape(-1, case.shape[0])[-1:] = 0
    return x


def forty_rows(
    op: LinearOp, shape: tuple[int, int] = (448, 288), group: int = 128, along: int | None = None
) -> tuple[LinearCase, Float32]:
    """A case that is not exact, and 40 rows; `along`: a group of inputs, by default all of them."""
    rng = np.random.default_rng(1)
    case = random_case(rng, op, shape, group, along or shape[0], exact=False)
    return case, random_rows(rng, case, (40,))


def exact_rows(rng: np.random.Generator, case: LinearCase, shape: tuple[int, ...]) -> Float32:
    """x whose scales are all LARGEST * step, of whole codes, and of halves where codes are few."""
    most = int(2 / case.step)
    halves = rng.integers(-most, most + 1, (*shape, case.shape[0]))
    if case.op.activation_bits == 16:
        halves &= ~1
    runs = halves.reshape(*shape, case.shape[0] // case.activation_group, case.activation_group)
    runs[..., 0] = rng.choice([-most, most], runs.shape[:-1])
    return (halves * (LARGEST * case.step / 2)).astype(np.float32)


def open_session(model: bytes, library: Path | None, threads: int = 1) -> ort.InferenceSession:
    """On the CPU; without a library the function body runs, in fp32."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # failures are raised as well
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, x: Float32) -> Float32:
    """y of x."""
    (y,) = session.run(None, {"x": x})
    return np.asarray(y, np.float32)
