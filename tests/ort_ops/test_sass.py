"""What nvcc makes of kernels for tensor cores: the products that are meant, nothing slow beside."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from tests.cubins import EVERY_GPU, NVCC, Compiler, Listing, disassembler
from tests.ort_ops.test_cuda_resources import LAUNCHERS

BYTES, MIXED = "IMMA.16832.S8.S8", "IMMA.16832.U8.S8"
INT4, HALVES = "IMMA.16864.S4.S4", "HMMA.16816.F32"
COPY = "LDGSTS"  # cp.async


@dataclass(frozen=True)
class TensorCores:
    """Kernels of `source` whose mangled names match `kernel`, and what each multiplies with."""

    source: str
    kernel: str
    products: tuple[str, ...]  # beginnings of operations, suffixes included
    gpus: Sequence[int] = EVERY_GPU

    @property
    def id(self) -> str:
        return f"{self.source}:{self.kernel}"


KERNELS = [
    TensorCores("linear_w4a8/mma8.cu", "tensor_core_product", (BYTES,)),
    TensorCores("linear_w4a8/mma4.cu", "int4_product", (INT4,), (80, 86, 87, 89)),
    TensorCores("linear_w4a8/wgmma.cu", "group_products", ("IGMMA.64x",), (90,)),
    TensorCores("linear_w4a8/halves.cu", "halves_productI6__half", (HALVES,)),
    TensorCores("linear_w4a8/halves.cu", "halves_productI13__nv_bfloat16", (f"{HALVES}.BF16",)),
    *(
        TensorCores(f"attention/tensor_core_{width}.cu", kernel, products)
        for width in (64, 128, 256)
        for kernel, products in (
            ("find_largest", (BYTES,)),
            (rf"add_upILi{width}ELb0E", (BYTES, MIXED)),  # values in codes
            (rf"add_upILi{width}ELb1E", (BYTES, HALVES)),
        )
    ),
]
pytestmark = [
    pytest.mark.cuda_compile,
    pytest.mark.skipif(NVCC is None, reason="no nvcc"),
    pytest.mark.skipif(
        disassembler() is None, reason="no cuobjdump and nvdisasm (CUDA, or the `sass` extra)"
    ),
]


def listings(compiler: Compiler, kernels: TensorCores) -> list[Listing]:
    compiled = compiler(kernels.source)
    found = [
        each
        for each in compiled.listings
        if re.search(kernels.kernel, each.name) and each.gpu in kernels.gpus
    ]
    assert {each.gpu for each in found} == set(kernels.gpus)
    return found


@pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: kernels.id)
def test_products_are_those_of_tensor_cores(compiler: Compiler, kernels: TensorCores) -> None:
    """Operands come by asynchronous copies, and nothing lies in local memory."""
    for each in listings(compiler, kernels):
        missing = [name for name in (*kernels.products, COPY) if not each.uses(name)]
        assert not missing, f"{each.name} for SM {each.gpu} has no {missing}"
        local = [name for name in ("LDL", "STL") if each.uses(name)]
        assert not local, f"{each.name} for SM {each.gpu} has {local}: arrays in local memory"


@pytest.mark.parametrize("kernels", KERNELS, ids=lambda kernels: kernels.id)
def test_loops_of_products_call_nothing(compiler: Compiler, kernels: TensorCores) -> None:
    """A division by a number that is not known, or an exact quotient of floats, is a call."""
    for each in listings(compiler, kernels):
        loops = each.loops_with(kernels.products[0])
        assert loops, f"{each.name} for SM {each.gpu} multiplies in no loop"
        assert not [call for loop in loops for call in loop.calls()], each.name


def test_no_kernel_is_forgotten(compiler: Compiler) -> None:
    """What multiplies on tensor cores has a line above."""
    for launcher in LAUNCHERS:
        known = [each.kernel for each in KERNELS if each.source == launcher]
        for each in compiler(launcher).listings:
            products = any(each.uses(name) for name in ("IMMA", "HMMA", "BMMA", "IGMMA", "HGMMA"))
            assert not products or any(re.search(name, each.name) for name in known), each.name
