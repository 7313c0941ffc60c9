"""Quantized linears: operators of our own against ONNX Runtime's, and against the machine.

Each contestant is a graph of one linear, run by ONNX Runtime with the same threads on the same
rows. All take turns; numbers are medians over the rounds, of the ratio to MatMul in fp32 in the
same round and of the seconds. The peak is the best rate of 8-bit multiply-adds that was seen in
this run, of torch's `_int_mm` or of any contestant.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Annotated

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
import torch
import typer

from exporter.machine import cpu_cores
from ort_ops.build import prebuild
from ort_ops.function_body import DOMAIN, OPSET
from ort_ops.int4 import pack_int4
from ort_ops.linear_w4a8.op import LinearOp, function_body
from tools.machine_peaks import measure_peaks
from tools.tables import markdown

SHAPES = ("1024x3072", "2048x2048", "4096x12288")  # 300M; the two of larger models
GROUP = 128
SECONDS_A_ROUND = 0.05  # short products are repeated for at least so long


@dataclass
class Contestant:
    """A linear in a format; `level` is the accuracy level of MatMulNBits."""

    name: str
    session: ort.InferenceSession
    seconds: list[float] = field(default_factory=list)  # a call, one a round

    def run(self, x: npt.NDArray[np.float32]) -> None:
        """One round."""
        start, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - start < SECONDS_A_ROUND:
            self.session.run(None, {"x": x})
            calls += 1
        self.seconds.append((time.perf_counter() - start) / calls)


def float_model(depth: int, width: int) -> bytes:
    """y = x · W in fp32."""
    weight = np.random.default_rng(0).normal(size=(depth, width)).astype(np.float32)
    x, w = _input(depth), _constant("w", ir.tensor(weight, name="w"))
    return _model(x, [w], ir.node("MatMul", [x, w]), width, [])


def linear_model(op: LinearOp, depth: int, width: int) -> bytes:
    """One node of an operator with random weights."""
    rng = np.random.default_rng(0)
    low, high = (-8, 8) if op.weight_bits == 4 else (-127, 128)
    codes = rng.integers(low, high, (depth, width)).astype(np.int8)
    scales = rng.random((1 if op.channel else depth // GROUP, width)).astype(np.float16)
    tensors: list[ir.TensorProtocol] = [
        ir.PackedTensor(pack_int4(codes), dtype=ir.DataType.INT4, shape=ir.Shape(codes.shape))
        if op.weight_bits == 4
        else ir.tensor(codes),
        ir.tensor(scales),
    ]
    if op.steps:
        steps = rng.integers(1, 16, (depth // GROUP, width)).astype(np.int8)
        tensors.append(ir.tensor(steps))
    tensors.append(ir.tensor(np.zeros(width, np.float32)))
    weights = [_constant(f"w{number}", tensor) for number, tensor in enumerate(tensors)]
    x = _input(depth)
    along = GROUP if op.activation_bits == 16 else depth
    attributes = {"group": GROUP, "activation_group": along, "step": 1 / op.top}
    node = ir.node(op.name, [x, *weights], attributes=attributes, domain=DOMAIN)
    return _model(x, weights, node, width, [function_body(op)])


def _input(depth: int) -> ir.Value:
    return ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["M", depth]))


def _constant(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    shape = ir.Shape(tensor.shape.numpy())
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)


def _model(
    x: ir.Value, weights: Sequence[ir.Value], node: ir.Node, width: int,
    functions: Sequence[ir.Function],
) -> bytes:  # fmt: skip
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["M", width])
    opsets = {"": OPSET, DOMAIN: 1}
    graph = ir.Graph([x], [y], nodes=[node], initializers=weights, name="g", opset_imports=opsets)
    for value in weights:
        assert value.const_value is not None
        value.const_value.name = value.name
    model = ir.Model(graph, ir_version=11, functions=functions)
    data: bytes = ir.serde.serialize_model(model).SerializeToString()
    return data


def contestants(depth: int, width: int, threads: int) -> list[Contestant]:
    """MatMul in fp32, then ONNX Runtime's best, then ours."""
    library = str(prebuild())

    def opened(name: str, data: bytes, own: bool, level: int = 0) -> Contestant:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # else its threads would still be busy waiting when the next one's turn has come
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(level))
        if own:
            options.register_custom_ops_library(library)
        return Contestant(name, ort.InferenceSession(data, options, ["CPUExecutionProvider"]))

    found = [opened("MatMul fp32", float_model(depth, width), False)]
    packed, bytes8 = LinearOp(4, 16), LinearOp(8, 8, channel=True)
    for level in (0, 4):
        name = f"MatMulNBits 4 bits, level {level}"
        found.append(opened(name, linear_model(packed, depth, width), False, level))
    found.append(opened("MatMulIntegerToFloat, 8 bits", linear_model(bytes8, depth, width), False))
    for op in (LinearOp(4, 8), LinearOp(4, 8, channel=True), bytes8, packed):
        found.append(opened(op.name, linear_model(op, depth, width), True))
    return found


def main(
    shape: Annotated[list[str], typer.Option(help="INPUTSxOUTPUTS; repeatable.")] = list(SHAPES),  # noqa: B006
    rows: Annotated[list[int], typer.Option(help="Repeatable.")] = [1, 32, 256],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: all cores.")] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print milliseconds a call, times MatMul in fp32, and the share of the 8-bit peak."""
    count = threads or cpu_cores()
    torch.set_num_threads(count)
    peak = measure_peaks().int8
    table: list[dict[str, object]] = []
    for each in shape:
        depth, width = (int(size) for size in each.split("x"))
        field_ = contestants(depth, width, count)
        for many in rows:
            x = np.random.default_rng(1).normal(size=(many, depth)).astype(np.float32)
            for one in field_:
                one.seconds.clear()
                one.session.run(None, {"x": x})
            for _ in range(rounds):
                for one in field_:
                    one.run(x)
            work = many * depth * width
            peak = max(peak, *(work / min(one.seconds) for one in field_))
            for one in field_:
                ratios = [a / b for a, b in zip(field_[0].seconds, one.seconds, strict=True)]
                table.append({
                    "K × N": each, "rows": many, "linear": one.name,
                    "ms": 1e3 * median(one.seconds), "times fp32": median(ratios),
                    "least … most": (min(ratios), max(ratios)),
                    "G multiply-adds/s": work / median(one.seconds) / 1e9,
                })  # fmt: skip
    for row in table:
        rate = row["G multiply-adds/s"]
        assert isinstance(rate, float)
        row["% of int8 peak"] = 100 * rate * 1e9 / peak
    if as_json:
        typer.echo(json.dumps({"threads": count, "peak": peak, "rows": table}, indent=1))
        return
    typer.echo(f"{count} threads, int8 peak {peak / 1e9:.3g} G multiply-adds/s, {rounds} rounds\n")
    typer.echo(markdown(table))


if __name__ == "__main__":
    typer.run(main)
