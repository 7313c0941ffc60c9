"""Random linears through the launcher of their kernels, in all types of floats, by any plan."""

import ctypes
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from ort_ops.int4 import pack_int4
from ort_ops.linear_w4a8.launch import PATHS, Call, Plan, WeightPointers
from ort_ops.linear_w4a8.op import Weight
from tests.launched import Array, Buffer, Launched, kernel_sources
from tests.linear_case import Float32, LinearCase

SOURCES = (*kernel_sources("linear_w4a8"), "launch_linear.cc")
Kind = Literal["fp32", "fp16", "bf16"]
KINDS: tuple[Kind, ...] = ("fp32", "fp16", "bf16")  # as `Float` numbers them
INVALID_VALUE = 1  # cudaErrorInvalidValue

Floats = npt.NDArray[np.floating[Any]]


def linear_launcher(factory: pytest.TempPathFactory, gpu: bool) -> Launched:
    """All kernels of linears."""
    made = Launched.compiled(factory, SOURCES, gpu)
    made.library.workspace.restype = made.library.size_of_call.restype = ctypes.c_size_t
    assert made.library.size_of_call() == ctypes.sizeof(Call)
    return made


def stored(x: Floats, kind: Kind) -> Array:
    """x as memory holds it; bf16 as its bits, rounded to even."""
    if kind != "bf16":
        return x.astype(np.float16 if kind == "fp16" else np.float32)
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(x), 0x7FFF, rounded).astype(np.uint16)


def rounded(x: Floats, kind: Kind) -> Float32:
    """x in fp32, of numbers that `kind` has."""
    with np.errstate(over="ignore"):  # large numbers are infinite in fp16
        held = stored(x, kind)
    return loaded(held, kind)


def loaded(held: Array, kind: Kind) -> Float32:
    """In fp32 what `stored` holds."""
    if kind == "bf16":
        return (held.astype(np.uint32) << 16).view(np.float32)
    return held.astype(np.float32)


def call_of(case: LinearCase, rows: int, kind: Kind) -> Call:
    depth, width = case.shape
    return Call(
        rows, depth, width, case.group, case.activation_group, case.step,
        case.op.weight_bits, case.op.activation_bits, case.op.channel, case.op.gated,
        KINDS.index(kind), case.half,
    )  # fmt: skip


def plan_of(launched: Launched, call: Call) -> Plan:
    """What `plan_linear` says."""
    made = Plan()
    launched.library.plan(ctypes.byref(call), ctypes.byref(made))
    return made


def path_of(launched: Launched, call: Call) -> str:
    """Where `plan_linear` sends a call."""
    return PATHS[plan_of(launched, call).path]


def launch(
    launched: Launched, case: LinearCase, x: Floats, kind: Kind, bias: bool = True,
    plan: Plan | None = None, offset: int = 0,
) -> tuple[int, Float32]:  # fmt: skip
    """The launcher's error, and y (…, N) in fp32 of x (…, K), both of which are `kind` to it.

    `offset`: how far codes lie behind aligned addresses, in bytes.
    """
    call = call_of(case, x.size // case.shape[0], kind)
    tensors = [_tensors(launched, case, weight, offset) for weight in case.weights]
    pointers = [[tensor and tensor.pointer for tensor in each] for each in tensors]
    weights = (WeightPointers * len(tensors))(*(WeightPointers(*each) for each in pointers))
    given, added = launched.put(stored(x, kind)), launched.put(stored(case.bias, kind))
    y = launched.poisoned((*x.shape[:-1], case.shape[1]), given.array().dtype)
    room = launched.poisoned((launched.library.workspace(ctypes.byref(call)),), np.uint8)
    arguments = [
        ctypes.c_void_p(given.pointer), weights,
        ctypes.c_void_p(added.pointer if bias and not case.op.gated else None),
        ctypes.c_void_p(y.pointer), ctypes.c_void_p(room.pointer),
    ]  # fmt: skip
    if plan is None:
        error = launched.library.launch(ctypes.byref(call), *arguments)
    else:
        error = launched.library.launch_planned(ctypes.byref(call), ctypes.byref(plan), *arguments)
    return error, loaded(y.array(), kind)


def output(
    launched: Launched, case: LinearCase, x: Floats, kind: Kind, bias: bool = True,
    plan: Plan | None = None,
) -> Float32:  # fmt: skip
    """What `launch` computes; it has to."""
    error, y = launch(launched, case, x, kind, bias, plan)
    assert error == 0
    return y


def _tensors(
    launched: Launched, case: LinearCase, weight: Weight, offset: int
) -> Sequence[Buffer | None]:
    codes = weight.codes if case.op.weight_bits == 8 else pack_int4(weight.codes)
    scales = weight.scales.astype(np.float16 if case.half else np.float32)
    steps = None if weight.steps is None else launched.put(weight.steps)
    return launched.put(codes, offset), launched.put(scales), steps


def in_kind(case: LinearCase, x: Floats, kind: Kind) -> tuple[LinearCase, Float32]:
    """The case with a bias, and x, of numbers that `kind` has."""
    return replace(case, bias=rounded(case.bias, kind)), rounded(x, kind)


def assert_between(low: Floats, high: Floats, y: Float32, kind: Kind) -> None:
    """y is between both, rounded to its type: rounding once keeps order."""
    least, most = rounded(low, kind), rounded(high, kind)
    assert y.shape == least.shape
    wrong = ~((least <= y) & (y <= most))
    assert not wrong.any(), f"{y[wrong]} is not between {least[wrong]} and {most[wrong]}"


def assert_right(case: LinearCase, x: Floats, y: Float32, kind: Kind) -> None:
    """In fp32 the sum keeps the bound of kernels on CPUs."""
    wide = x.astype(np.float32)
    wanted, bound = case.expected(wide), case.bound(wide, body=False)
    assert_between(wanted - bound, wanted + bound, y, kind)
