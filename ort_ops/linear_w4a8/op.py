"""The operators of quantized linears: contract, numpy reference, and ONNX function body.

`DqxLinear<format>(x, weight…, bias) -> y`: y = x · W + bias, with x (…, K) rounded to integers at
run time. `DqxGated<format>(x, weight of gate…, weight of up…) -> silu(x · W_gate) * (x · W_up)`.
Domain `dqexport`, version 1; x, bias and y are fp32, or all fp16, or all bf16 (kernels for GPUs
alone). A format is `W<bits>A<bits>`, with weights

* plain: codes INT4 or INT8 (K, N), scales fp16 or fp32 (ceil(K / group), N); sums in floats, a
  group at a time;
* `Channel`, 8 bits: codes INT8 (K, N), scales (N,); integers are summed over all of K;
* `Channel`, 4 bits: codes INT4 (K, N), scales (N,), steps INT8 (ceil(K / group), N); the same, of
  codes times steps, which lie in [-128, 127] (QServe, Lin et al. 2024, has such weights).

Attributes: `group`, inputs that share a weight scale or step; `activation_group`, inputs that
share an activation scale: K (one scale a token) or a divisor of K; `step`, what the largest |x| of
a token or group is multiplied by to give the scale: 1 / 127 for 8 bits that cover everything. A
scale is at least 2^-24, codes are rounded to even and clipped to [-top - 1, top], top = 7, 127 or
32639. Sixteen bits are a way to multiply floats by integers: the function body and kernels for
GPUs keep x as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ort_ops.function_body import Body

INT, FLOAT = ir.AttributeType.INT, ir.AttributeType.FLOAT
LEAST_SCALE = 2.0**-24
TOPS = {4: 7, 8: 127, 16: 32639}  # of 16 bits: the low byte is signed as well

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]


@dataclass(frozen=True)
class LinearOp:
    """One operator: the formats of weights and activations, and whether it is a gated pair."""

    weight_bits: Literal[4, 8]
    activation_bits: Literal[4, 8, 16]
    channel: bool = False
    gated: bool = False

    @property
    def name(self) -> str:
        """The operator's type."""
        kind = "Gated" if self.gated else "Linear"
        suffix = "Channel" if self.channel else ""
        return f"Dqx{kind}W{self.weight_bits}A{self.activation_bits}{suffix}"

    @property
    def top(self) -> int:
        """The largest activation code."""
        return TOPS[self.activation_bits]

    @property
    def steps(self) -> bool:
        """Whether a weight has integer steps."""
        return self.channel and self.weight_bits == 4


OPS = tuple(
    LinearOp(weight_bits, activation_bits, channel, gated)
    for gated in (False, True)
    for channel in (False, True)
    for weight_bits in (4, 8)
    for activation_bits in ((4, 8) if channel else (4, 8, 16))
)


@dataclass(frozen=True)
class Weight:
    """The tensors of one weight, as the operator takes them."""

    codes: Int8  # (K, N)
    scales: Float32  # (ceil(K / group), N), or (N,) in `Channel` formats
    steps: Int8 | None = None  # (ceil(K / group), N)

    def integers(self, group: int) -> npt.NDArray[np.int64]:
        """Codes, times steps where there are any, (K, N)."""
        codes = self.codes.astype(np.int64)
        if self.steps is None:
            return codes
        return codes * self.steps.astype(np.int64).repeat(group, axis=0)[: len(codes)]


def activation_codes(
    x: Float32, op: LinearOp, group: int, step: float
) -> tuple[npt.NDArray[np.int64], Float32]:
    """Codes (M, K) and scales (M, K / group) of x (M, K)."""
    runs = x.reshape(len(x), x.shape[1] // group, group)
    scales = np.abs(runs).max(-1) * np.float32(step)
    scales = np.maximum(scales, np.float32(LEAST_SCALE))
    codes = np.rint(runs / scales[..., None]).clip(-op.top - 1, op.top)
    return codes.astype(np.int64).reshape(x.shape), scales


def reference(
    op: LinearOp,
    x: Float32,
    weights: Sequence[Weight],
    bias: Float32 | None,
    group: int,
    activation_group: int,
    step: float,
) -> npt.NDArray[np.float64]:
    """y (…, N) in float64: exact integers, then one product and one sum a group.

    `weights` is one, or gate and up of a gated pair.
    """
    rows = x.reshape(-1, x.shape[-1])
    codes, scales = activation_codes(rows, op, activation_group, step)
    outputs = [_product(op, codes, scales, w, group, activation_group) for w in weights]
    y = silu(outputs[0]) * outputs[1] if op.gated else outputs[0]
    y = y if bias is None else y + bias
    shaped: npt.NDArray[np.float64] = y.reshape(*x.shape[:-1], y.shape[-1])
    return shaped


def silu(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """x * sigmoid(x), of any size."""
    y: npt.NDArray[np.float64] = x * np.exp(-np.logaddexp(0, -x))
    return y


def _product(
    op: LinearOp,
    codes: npt.NDArray[np.int64],
    scales: Float32,
    weight: Weight,
    group: int,
    activation_group: int,
) -> npt.NDArray[np.float64]:
    """x · W (M, N) of activation codes (M, K) and scales (M, K / activation_group)."""
    depth = codes.shape[1]
    integers = weight.integers(group)
    total = np.zeros((len(codes), integers.shape[1]))
    borders = {0, depth} | {*range(0, depth, group)} | {*range(0, depth, activation_group)}
    ends = sorted(borders)
    for first, last in pairwise(ends):
        sums = codes[:, first:last] @ integers[first:last]
        scale = weight.scales if op.channel else weight.scales[first // group]
        by_row = scales[:, first // activation_group, None].astype(np.float64)
        total += sums * scale.astype(np.float64) * by_row
    return total


def function_body(op: LinearOp, body: Body | None = None) -> ir.Function:
    """The operator in standard operators, in the forms that ONNX Runtime fuses."""
    body = body or Body()
    x = body.floats("x")
    weights = [
        _weight_inputs(body, op, prefix) for prefix in (("gate_", "up_") if op.gated else ("",))
    ]
    if op.channel:
        scale = _token_scale(body, x)
        product = _stepped_product if op.steps else _integer_product
        whole = _whole(body, op, x, scale)
        outputs = [
            body.op("Mul", product(body, whole, weight, place), scale)
            for place, weight in enumerate(weights)
        ]
    else:
        rounded = x if op.activation_bits == 16 else _rounded(body, op, x)
        outputs = [body.op("MatMul", rounded, _dequantized(body, *weight)) for weight in weights]
    if op.gated:
        y = body.op("Mul", body.op("Mul", outputs[0], body.op("Sigmoid", outputs[0])), outputs[1])
    else:
        y = body.op("Add", outputs[0], body.floats("bias"))
    kinds = {"group": INT, "activation_group": INT, "step": FLOAT}
    return body.function(op.name, y, kinds)


def _weight_inputs(body: Body, op: LinearOp, prefix: str) -> list[ir.Value]:
    names = ("codes", "scales", "steps") if op.steps else ("codes", "scales")
    return [body.input(prefix + name) for name in names]


def _floats(body: Body, scales: ir.Value) -> ir.Value:
    return body.op("Cast", scales, to=int(ir.DataType.FLOAT))


def _dequantized(body: Body, codes: ir.Value, scales: ir.Value) -> ir.Value:
    group = ir.RefAttr("block_size", "group", INT)
    return body.op("DequantizeLinear", codes, _floats(body, scales), axis=0, block_size=group)


def _token_scale(body: Body, x: ir.Value) -> ir.Value:
    """Scales (…, 1) along the last axis."""
    largest = body.op("ReduceMax", body.op("Abs", x), body.ints(-1), keepdims=1)
    # of no token at all ONNX Runtime's ReduceMax keeps all channels
    largest = body.op("Slice", largest, body.ints(0), body.ints(1), body.ints(-1))
    scale = body.op("Mul", largest, body.attribute("step", FLOAT))
    return body.op("Max", scale, body.number(LEAST_SCALE))


def _rounded(body: Body, op: LinearOp, x: ir.Value) -> ir.Value:
    """x rounded and back, a scale a token and group of inputs."""
    group = body.op("Unsqueeze", body.attribute("activation_group", INT), body.ints(0))
    rows = body.op("Shape", x, end=-1)
    count = body.op("Div", body.op("Shape", x, start=-1), group)
    runs = body.op("Reshape", x, body.op("Concat", rows, count, group, axis=0), allowzero=1)
    scale = _token_scale(body, runs)
    codes = body.op("Round", body.op("Div", runs, scale))
    codes = body.op("Clip", codes, body.number(-op.top - 1.0), body.number(op.top))
    return body.op("Reshape", body.op("Mul", codes, scale), body.op("Shape", x), allowzero=1)


def _whole(body: Body, op: LinearOp, x: ir.Value, scale: ir.Value) -> ir.Value:
    """x / scale; rounded too, but where QuantizeLinear does that, which saturates at 8 bits."""
    whole = body.op("Div", x, scale)
    if op.steps:
        whole = body.op("Round", whole)
    if op.steps or op.activation_bits < 8:
        whole = body.op("Clip", whole, body.number(-op.top - 1.0), body.number(op.top))
    return whole


def _integer_product(body: Body, x: ir.Value, weight: Sequence[ir.Value], place: int) -> ir.Value:
    """The product of x, rounded to int8, and int8 weights: sums times the output scales.

    Gate and up round x each for themselves, on axes of their own that say nothing beside a scalar
    scale: ONNX Runtime fuses nothing where QuantizeLinear has several readers.
    """
    one, zero = body.number(1.0), body.constant(np.array(0, np.int8))
    codes = body.op("QuantizeLinear", x, one, zero, axis=place)
    whole = body.op("DequantizeLinear", codes, one, zero, axis=place)
    scales = body.op("Reshape", _floats(body, weight[1]), body.ints(-1))
    return body.op("MatMul", whole, body.op("DequantizeLinear", weight[0], scales, axis=1))


def _stepped_product(body: Body, x: ir.Value, weight: Sequence[ir.Value], place: int) -> ir.Value:
    """The product of whole numbers x and 4-bit weights with steps, in floats.

    Integers would be faster, but ONNX Runtime would unpack the weights when it loads them: 4 bytes
    for each half, several times over.
    """
    del place  # nothing here is told from its twin
    codes, scales, steps = weight
    each = body.op("Mul", _floats(body, steps), _floats(body, scales))
    group = ir.RefAttr("block_size", "group", INT)
    return body.op("MatMul", x, body.op("DequantizeLinear", codes, each, axis=0, block_size=group))
