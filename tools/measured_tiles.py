"""Seconds of a linear by any plan, on the GPU of this machine."""

import ctypes
from functools import cache
from statistics import median
from typing import TYPE_CHECKING

from ort_ops.build_cuda import prebuild
from ort_ops.linear_w4a8.launch import PATHS, Call, Plan, WeightPointers
from tools.gpu_launchers import checked, loaded, stream
from tools.gpu_timing import Run, copies, take_turns
from tools.tile_model import GPUS, Gpu, Shape

if TYPE_CHECKING:
    from tools.tune_kernels import Choice, Cost, Form

GROUP = 128


def measured(rounds: int) -> tuple[int, str, "Cost"]:
    """Compute capability by ten, the GPU's name, and what a division takes on it.

    RuntimeError where there is no GPU, or none that the table has.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("this machine has no GPU that PyTorch can use")
    major, minor = torch.cuda.get_device_capability()
    sm = 10 * major + minor
    if sm not in GPUS:
        raise RuntimeError(f"the table has no GPU of compute capability {major}.{minor}")
    library = loaded(prebuild(sm))
    real = torch.cuda.get_device_properties(0)
    gpu = Gpu(real.name, real.multi_processor_count, 0, 0, 0, GPUS[sm].int4)

    @cache
    def cost(form: "Form", choice: "Choice", shape: Shape) -> float:
        plan = Plan(PATHS.index(choice.kernel.path), choice.kernel.rows, choice.parts(gpu, shape))
        run = planned(library, form, plan, shape)
        return median(take_turns({"it": run}, rounds, 10)["it"])

    return sm, real.name, cost


def planned(library: ctypes.CDLL, form: "Form", plan: Plan, shape: Shape) -> Run:
    """Calls of one plan, in fp16, that take turns with copies of the weights."""
    import torch

    bits, bytes_of_codes = form.weight_bits, shape.depth * shape.width * form.weight_bits // 8
    pairs, count = 1 + form.gated, copies(bytes_of_codes)
    codes = torch.randint(
        -128, 128, (count, pairs, bytes_of_codes), dtype=torch.int8, device="cuda"
    )
    groups = 1 if form.channel else shape.depth // GROUP
    scales = torch.full((groups, shape.width), 1e-3, dtype=torch.float16, device="cuda")
    steps = torch.randint(
        1, 16, (shape.depth // GROUP, shape.width), dtype=torch.int8, device="cuda"
    )
    x = torch.randn(shape.rows, shape.depth, dtype=torch.float16, device="cuda")
    y = torch.empty(shape.rows, shape.width, dtype=torch.float16, device="cuda")
    along = shape.depth if form.channel else GROUP
    call = Call(
        shape.rows, shape.depth, shape.width, GROUP, along, 1 / 127, bits, 4 if form.int4 else 8,
        form.channel, form.gated, 1, 1,
    )  # fmt: skip
    room = torch.empty(
        library.linear_workspace(ctypes.byref(call)), dtype=torch.uint8, device="cuda"
    )
    stepped = form.channel and bits == 4
    step_pointer = steps.data_ptr() if stepped else 0
    given = [
        (WeightPointers * pairs)(
            *(WeightPointers(one.data_ptr(), scales.data_ptr(), step_pointer) for one in copy)
        )
        for copy in codes
    ]

    def run(number: int) -> None:
        checked(
            library.launch_planned_linear(
                ctypes.byref(call), ctypes.byref(plan), ctypes.c_void_p(x.data_ptr()),
                given[number % count], None, ctypes.c_void_p(y.data_ptr()),
                ctypes.c_void_p(room.data_ptr()), stream(),
            )
        )  # fmt: skip

    run.kept = (codes, scales, steps, x, y, room)  # type: ignore[attr-defined]
    return run
