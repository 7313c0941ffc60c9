"""CUDA kernels of quantized linears against cuBLAS and others: contestants, floors, goals.

Run by `tools.bench_kernels`. The floor of a linear is the larger of its bytes at the bandwidth and
of its multiply-adds at the rate of the type that it multiplies.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from ort_ops.linear_w4a8.launch import Call, WeightPointers
from ort_ops.linear_w4a8.op import LinearOp
from tools.goals import Goal, Row, verdicts
from tools.goals import summary as goals_summary
from tools.gpu_launchers import checked, stream
from tools.gpu_machine import Machine
from tools.gpu_timing import Run, as_graphs, contestant, copies, rounds_of

LINEARS = {  # inputs and outputs
    "LLaDA-8B q": (4096, 4096), "LLaDA-8B gate": (4096, 12288), "LLaDA-8B down": (12288, 4096),
    "Dream-7B q": (3584, 3584), "Dream-7B gate": (3584, 18944), "Dream-7B down": (18944, 3584),
    "SDAR-4B q": (2560, 4096), "SDAR-4B gate": (2560, 9728), "SDAR-4B down": (9728, 2560),
}  # fmt: skip
ROWS = (1, 8, 32, 64, 128, 256, 512, 1024)
GROUP = 128
STEPPED = 4 + 8 / GROUP  # bits of a 4-bit weight, its share of integer steps included


@dataclass(frozen=True)
class Form:
    """What a contestant moves and multiplies; some take few rows alone, or many."""

    name: str
    bits: float  # a weight
    integers: bool  # are multiplied, of 8 bits; else halves
    gated: bool = False  # silu(x · gate) * (x · up): two weights
    least_rows: int = 0
    most_rows: int = 1 << 30
    stepped: bool = False  # ours of 4-bit weights: it has goals of its own

    def takes(self, rows: int, name: str) -> bool:
        """Whether it takes part; pairs at the linears that are pairs in a model."""
        fits = self.least_rows <= rows <= self.most_rows
        return fits and (not self.gated or name.endswith("gate"))

    def bytes_moved(self, rows: int, depth: int, width: int) -> float:
        """Weights, x and y once; activations are of two bytes."""
        return (1 + self.gated) * depth * width * self.bits / 8 + 2 * rows * (depth + width)

    def products(self, rows: int, depth: int, width: int) -> int:
        """Multiply-adds."""
        return (1 + self.gated) * rows * depth * width


BASE, GATED_BASE = Form("torch bf16", 16, False), Form("torch bf16, gated pair", 16, False, True)
FORMS = (
    BASE,
    GATED_BASE,
    Form("torch _int_mm", 8, True, least_rows=17),  # it takes no fewer
    Form("torch int4 (tinygemm)", 4 + 32 / GROUP, False),
    Form("torchao int4", 4 + 32 / GROUP, False),
    Form("Triton W4A8", STEPPED, True),
    Form("W4A8", STEPPED, True, stepped=True),
    Form("W4A8, gated pair", STEPPED, True, gated=True, stepped=True),
    Form("W8A8", 8, True),
    Form("W4A4", STEPPED, True),
    Form("W4A16", 4 + 16 / GROUP, False, most_rows=8),
)
NAMED = {form.name: form for form in FORMS}


def goals(form: Form, rows: int) -> list[Goal]:
    """What our kernels are meant to reach with so many rows."""
    found = []
    if form.stepped and rows <= 64:
        found.append(Goal("2.5 times bf16 at 64 rows or fewer", "times bf16", 2.5))
    if form.stepped and 256 <= rows <= 1024:
        found.append(Goal("1.3 times bf16 at 256 to 1024 rows", "times bf16", 1.3))
    if form.stepped and rows <= 32:
        found.append(Goal("70 % of the bandwidth at 32 rows or fewer", "% of bandwidth", 70))
    if (form.stepped or form.name == "W8A8") and rows >= 512:
        found.append(Goal("60 % of the 8-bit rate at 512 rows or more", "% of rate", 60))
    return found


def floor(machine: Machine, form: Form, rows: int, depth: int, width: int) -> tuple[float, float]:
    """Seconds that the bytes take at least, and the multiply-adds."""
    rate = machine.int8 if form.integers else machine.halves
    moved = form.bytes_moved(rows, depth, width) / machine.bandwidth
    return moved, form.products(rows, depth, width) / rate


def row_of(
    machine: Machine, name: str, rows: int, form: Form, seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """A row of the table; `seconds` of all contestants, one a round."""
    depth, width = LINEARS[name]
    base = GATED_BASE if form.gated else BASE
    ratios = [a / b for a, b in zip(seconds[base.name], seconds[form.name], strict=True)]
    took = median(seconds[form.name])
    moved, multiplied = floor(machine, form, rows, depth, width)
    row: Row = {
        "linear": name, "K × N": f"{depth}x{width}", "rows": rows, "kernel": form.name,
        "µs": 1e6 * took, "times bf16": median(ratios), "least … most": (min(ratios), max(ratios)),
        "floor µs": 1e6 * max(moved, multiplied), "% of floor": 100 * max(moved, multiplied) / took,
        "% of bandwidth": 100 * moved / took, "% of rate": 100 * multiplied / took,
    }  # fmt: skip
    return {**row, "goals": verdicts(row, goals(form, rows))}


def summary(table: Sequence[Row]) -> list[dict[str, object]]:
    """How many rows met each goal, and the worst of them."""
    return goals_summary(
        table,
        lambda row: goals(NAMED[row["kernel"]], row["rows"]),
        lambda row: f"{row['linear']}, {row['rows']} rows",
    )


def plan(machine: Machine, names: Sequence[str], rows: Sequence[int]) -> list[dict[str, object]]:
    """Floors of our kernels, and what meets their goals if cuBLAS is at its own floor."""
    found: list[dict[str, object]] = []
    for name in names:
        depth, width = LINEARS[name]
        for many in rows:
            for form in FORMS:
                if not (form.stepped or form.name in ("W8A8", "W4A16")) or not form.takes(
                    many, name
                ):
                    continue
                moved, multiplied = floor(machine, form, many, depth, width)
                base = max(floor(machine, GATED_BASE if form.gated else BASE, many, depth, width))
                wanted = {"times bf16": base, "% of bandwidth": 100 * moved,
                          "% of rate": 100 * multiplied}  # fmt: skip
                limits = [wanted[goal.quantity] / goal.least for goal in goals(form, many)]
                found.append({
                    "linear": name, "rows": many, "kernel": form.name,
                    "bound by": "bytes" if moved > multiplied else "products",
                    "floor µs": 1e6 * max(moved, multiplied), "bf16 floor µs": 1e6 * base,
                    "goals met within µs": 1e6 * min(limits) if limits else None,
                })  # fmt: skip
    return found


def predictions(
    table: Sequence[dict[str, Any]], machines: Sequence[Machine]
) -> list[dict[str, object]]:
    """What boards would take for the linears of W4A8 at the same share of their own floors."""
    found: list[dict[str, object]] = []
    for machine in machines:
        for row in table:
            if row["kernel"] == "W4A8":
                least = max(floor(machine, NAMED["W4A8"], row["rows"], *LINEARS[row["linear"]]))
                found.append({
                    "board": machine.name, "linear": row["linear"], "rows": row["rows"],
                    "floor µs": 1e6 * least, "predicted µs": 1e8 * least / row["% of floor"],
                })  # fmt: skip
    return found


def compare(
    library: ctypes.CDLL, machine: Machine, name: str, rows: int, rounds: int, calls: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """One linear at one number of rows: a row a contestant, and who is absent and why."""
    import torch

    depth, width = LINEARS[name]
    with torch.device("cuda"):
        field = [
            contestant(form.name, partial(make, library, form, rows, depth, width))
            for form in FORMS
            if form.takes(rows, name)
        ]
    present = {each.name: each.run for each in field if each.run is not None}
    works, plain = as_graphs(present, calls)
    seconds = rounds_of(works, rounds, calls)
    table = [row_of(machine, name, rows, NAMED[key], seconds) for key in present]
    return table, {each.name: each.absent for each in field if each.run is None} | plain


def make(library: ctypes.CDLL, form: Form, rows: int, depth: int, width: int) -> Run:
    """A contestant, its operands on torch's default device."""
    others: dict[str, Callable[[int, int, int], Run]] = {
        BASE.name: _torch_bf16, GATED_BASE.name: _torch_gated, "torch _int_mm": _torch_int_mm,
        "torch int4 (tinygemm)": _tinygemm, "torchao int4": _torchao, "Triton W4A8": _triton,
    }  # fmt: skip
    if form.name in others:
        return others[form.name](rows, depth, width)
    bits, activations = (int(n) for n in form.name.split(",")[0][1:].split("A"))
    return _ours(library, bits, activations, form.gated, rows, depth, width)


def _ours(
    library: ctypes.CDLL, bits: int, activations: int, gated: bool, rows: int, depth: int,
    width: int,
) -> Run:  # fmt: skip
    """y = x · W by the launcher, in fp16, rounding of x included."""
    import torch

    channel = activations < 16
    size = depth * width * bits // 8
    count = copies(size * (1 + gated))
    codes = torch.randint(-128, 128, (count, 1 + gated, size), dtype=torch.int8)
    groups = depth // GROUP
    scales = torch.full((1 if channel else groups, width), 1e-3, dtype=torch.float16)
    steps = torch.randint(1, 16, (groups, width), dtype=torch.int8)
    x = torch.randn(rows, depth, dtype=torch.float16)
    y = torch.empty(rows, width, dtype=torch.float16)
    top = {4: 7, 8: 127, 16: 32639}[activations]
    along = depth if channel else GROUP
    call = Call(rows, depth, width, GROUP, along, 1 / top, bits, activations, channel, gated, 1, 1)
    room = torch.empty(library.linear_workspace(ctypes.byref(call)) + 16, dtype=torch.uint8)
    step = steps.data_ptr() if channel and bits == 4 else 0
    given = [
        (WeightPointers * (1 + gated))(
            *(WeightPointers(each.data_ptr(), scales.data_ptr(), step) for each in pair)
        )
        for pair in codes
    ]
    kept = (x, y, room, codes, scales, steps)

    def run(turn: int) -> torch.Tensor:
        x_at, y_at, room_at = (ctypes.c_void_p(tensor.data_ptr()) for tensor in kept[:3])
        checked(
            library.launch_linear(
                ctypes.byref(call), x_at, given[turn % count], None, y_at, room_at, stream()
            )
        )
        return y

    return run


def _torch_bf16(rows: int, depth: int, width: int) -> Run:
    import torch

    count = copies(2 * depth * width)
    weights = torch.randn(count, width, depth, dtype=torch.bfloat16)
    x = torch.randn(rows, depth, dtype=torch.bfloat16)
    return lambda turn: torch.matmul(x, weights[turn % count].T)


def _torch_gated(rows: int, depth: int, width: int) -> Run:
    import torch

    count = copies(4 * depth * width)
    weights = torch.randn(count, 2 * width, depth, dtype=torch.bfloat16)
    x = torch.randn(rows, depth, dtype=torch.bfloat16)

    def run(turn: int) -> object:
        gate, up = torch.matmul(x, weights[turn % count].T).chunk(2, -1)
        return torch.nn.functional.silu(gate) * up

    return run


def _torch_int_mm(rows: int, depth: int, width: int) -> Run:
    """On bytes that are rounded already."""
    import torch

    count = copies(depth * width)
    weights = torch.randint(-127, 128, (count, width, depth), dtype=torch.int8)
    codes = torch.randint(-127, 128, (rows, depth), dtype=torch.int8)
    return lambda turn: torch._int_mm(codes, weights[turn % count].T)


def _tinygemm(rows: int, depth: int, width: int) -> Run:
    """PyTorch's own product of bf16 and 4-bit weights in groups."""
    import torch

    count = copies(depth * width // 2)
    pairs = torch.randint(0, 256, (width, depth // 2), dtype=torch.uint8)
    packed = [torch._convert_weight_to_int4pack(pairs, 8) for _ in range(count)]
    scales = torch.rand(depth // GROUP, width, 2, dtype=torch.bfloat16)
    x = torch.randn(rows, depth, dtype=torch.bfloat16)
    return lambda turn: torch._weight_int4pack_mm(x, packed[turn % count], GROUP, scales)


def _torchao(rows: int, depth: int, width: int) -> Run:
    """What torchao makes of a linear in bf16."""
    import torch
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    count = copies(depth * width // 2)
    linears = [
        torch.nn.Linear(depth, width, bias=False, dtype=torch.bfloat16) for _ in range(count)
    ]
    for linear in linears:
        quantize_(linear, Int4WeightOnlyConfig(group_size=GROUP))
    x = torch.randn(rows, depth, dtype=torch.bfloat16)

    def run(turn: int) -> object:
        with torch.no_grad():
            return linears[turn % count](x)

    return run


def _triton(rows: int, depth: int, width: int) -> Run:
    import torch

    from tools.triton_twins.linear import LinearTwin, TwinWeight

    count = copies(depth * width // 2)
    codes = torch.randint(0, 256, (count, depth * width // 2), dtype=torch.uint8)
    scales = torch.full((width,), 1e-3, dtype=torch.float16)
    steps = torch.randint(1, 16, (depth // GROUP, width), dtype=torch.int8)
    x = torch.randn(rows, depth, dtype=torch.float16)
    twin = LinearTwin(LinearOp(4, 8, channel=True), depth, width, GROUP, depth, 1 / 127)
    weights = [(TwinWeight(each, scales, steps),) for each in codes]
    return lambda turn: twin(x, weights[turn % count], None)
