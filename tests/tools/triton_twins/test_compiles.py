"""Twins compile for GPUs as they stand: no GPU is needed for that."""

import os
import re
from collections.abc import Mapping

import pytest

pytestmark = pytest.mark.triton
LINEAR = {
    "x": "*i8", "x_scales": "*fp32", "gate": "*u8", "gate_scales": "*fp16", "gate_steps": "*i8",
    "up": "*u8", "up_scales": "*fp16", "up_steps": "*i8", "bias": "*fp16", "y": "*fp16",
    **dict.fromkeys(("rows", "depth", "width", "group", "along", "section"), "i32"),
}  # fmt: skip
ATTENTION = {
    "q": "*i8", "q_scales": "*fp32", "k": "*i8", "k_scales": "*fp16", "v": "*i8",
    "v_scale": "*fp16", "v_zero": "*fp16", "visible": "*u8", "key_block": "*i32", "reach": "*i32",
    "y": "*fp16", **dict.fromkeys(("queries", "keys", "heads", "kv_heads", "width"), "i32"),
    "unit": "fp32", "p_top": "i32",
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """Under the interpreter there is nothing to compile."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1 is set")


def assembly(
    kernel: object, types: Mapping[str, str], constants: Mapping[str, int], gpu: int
) -> str:
    """PTX of a kernel for one GPU."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(kernel, signature, dict(constants))
    made = compile_kernel(source, target=GPUTarget("cuda", gpu, 32))
    return str(made.asm["ptx"])


def products(text: str) -> set[str]:
    """Types of the operands of integer and float products on tensor cores."""
    found = re.findall(r"\b(?:wgmma\.mma_async|mma\.sync)\.\S*?\.(s8\.s8|f16\.f16)", text)
    return set(found)


@pytest.mark.parametrize("gpu", [87, 90])
@pytest.mark.parametrize(("floats", "operands"), [(0, "s8.s8"), (1, "f16.f16")])
def test_linears_multiply_bytes_or_halves(gpu: int, floats: int, operands: str) -> None:
    from tools.triton_twins.linear import multiply

    constants = {"FLOATS": floats, "BITS": 4, "CHANNEL": 1 - floats, "STEPS": 1 - floats,
                 "GATED": 1, "BIAS": 1, "ROWS": 64, "COLUMNS": 64, "DEPTH": 64}  # fmt: skip
    types = {**LINEAR, "x": "*fp16" if floats else "*i8"}
    assert products(assembly(multiply, types, constants, gpu)) == {operands}


@pytest.mark.parametrize("gpu", [87, 90])
@pytest.mark.parametrize(("v_bits", "second"), [(8, "s8.s8"), (16, "f16.f16")])
def test_attention_multiplies_bytes_and_halves(gpu: int, v_bits: int, second: str) -> None:
    from tools.triton_twins.attend import attend

    constants = {"CACHED": 1, "K_BITS": 4, "V_BITS": v_bits, "QUERIES": 64, "KEYS": 64,
                 "WIDTH": 128}  # fmt: skip
    types = {**ATTENTION, "v": "*i8" if v_bits == 8 else "*fp16"}
    assert products(assembly(attend, types, constants, gpu)) == {"s8.s8", second}
