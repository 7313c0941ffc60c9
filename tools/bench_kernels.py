"""CUDA kernels of quantized linears against cuBLAS, and against the GPU.

    python -m tools.bench_kernels --compile 90 kernels.so     where there is nvcc, without a GPU
    python -m tools.bench_kernels --library kernels.so        on the GPU, with PyTorch

Contestants take turns on linears of real models; each call takes the next of several copies of the
weights, so that none lies in a cache. Times are medians over rounds, by events of the device. The
floor of a linear is the larger of its bytes at the bandwidth and of its multiply-adds at the
8-bit rate that were measured in this run (a copy of 1 GiB; torch's `_int_mm` of 8192 cubed). For
other boards that floor, at their bandwidth and rate, divided by the share of it that was reached
here: a prediction and no measurement.
"""

import ctypes
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

import targets
from ort_ops.build import ROOT
from ort_ops.linear_w4a8.launch import Call, WeightPointers
from tools.tables import markdown

LINEARS = {  # inputs and outputs
    "LLaDA-8B q": (4096, 4096), "LLaDA-8B gate": (4096, 12288), "LLaDA-8B down": (12288, 4096),
    "Dream-7B q": (3584, 3584), "Dream-7B gate": (3584, 18944), "Dream-7B down": (18944, 3584),
    "SDAR-4B q": (2560, 4096), "SDAR-4B gate": (2560, 9728), "SDAR-4B down": (9728, 2560),
}  # fmt: skip
ROWS = (1, 8, 32, 64, 128, 256, 512, 1024)
GROUP = 128
CACHE = 256 << 20  # bytes of weights that are taken turns with: more than any cache holds
LEAST_INT_MM = 17  # rows that torch's _int_mm takes
NOT_MEASURED = 3  # exit code

Run = Callable[[int], object]  # on one of the copies of the weights


@dataclass(frozen=True)
class Machine:
    """What the GPU reaches: bytes a second, 8-bit multiply-adds a second."""

    bandwidth: float
    rate: float

    def floor(self, rows: int, depth: int, width: int, bits: float) -> float:
        """Seconds of a linear with `bits` a weight that no kernel can do without."""
        moved = depth * width * bits / 8 + 2 * rows * (depth + width)
        return max(moved / self.bandwidth, rows * depth * width / self.rate)


def compile_library(sm: int, place: Path) -> None:
    """The launchers for GPUs of one compute capability × 10 as a shared library."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    sources = [Path(__file__).with_name("launchers.cu"), *(ROOT / "linear_w4a8").glob("*.cu")]
    command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{sm}", "-Xcompiler=-fPIC", "-shared"]
    subprocess.run([*command, f"-I{ROOT}", *map(str, sources), "-o", str(place)], check=True)


def bits_of(weight_bits: int) -> float:
    """What a weight takes, its share of integer steps included."""
    return weight_bits + (8 / GROUP if weight_bits == 4 else 0)


def ours(library: ctypes.CDLL, bits: int, rows: int, depth: int, width: int) -> Run:
    """y = x · W by the launcher, in fp16, rounding of x included."""
    import torch

    count = copies(depth * width * bits // 8)
    codes = torch.randint(-128, 128, (count, depth * width * bits // 8), dtype=torch.int8,
                          device="cuda")  # fmt: skip
    scales = torch.full((width,), 1e-3, dtype=torch.float16, device="cuda")
    steps = torch.randint(1, 16, (depth // GROUP, width), dtype=torch.int8, device="cuda")
    x = torch.randn(rows, depth, dtype=torch.float16, device="cuda")
    y = torch.empty(rows, width, dtype=torch.float16, device="cuda")
    call = Call(rows, depth, width, GROUP, depth, 1 / 127, bits, 8, True, False, 1, 1)
    library.linear_workspace.restype = ctypes.c_size_t
    size = library.linear_workspace(ctypes.byref(call))
    room = torch.empty(size, dtype=torch.uint8, device="cuda")
    given = [
        (WeightPointers * 1)(
            WeightPointers(copy.data_ptr(), scales.data_ptr(), steps.data_ptr() if bits == 4 else 0)
        )
        for copy in codes
    ]
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (x, y, room)]
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)

    def run(turn: int) -> None:
        error = library.launch_linear(
            ctypes.byref(call), pointers[0], given[turn % count], None, pointers[1], pointers[2],
            stream,
        )  # fmt: skip
        if error:
            raise RuntimeError(f"error {error} of the CUDA runtime")

    run.kept = (codes, scales, steps, x, y, room)  # type: ignore[attr-defined]
    return run


def torch_linear(kind: str, rows: int, depth: int, width: int) -> Run:
    """x · W of cuBLAS in bf16, or of `_int_mm` on bytes that are rounded already."""
    import torch

    size = 2 if kind == "bf16" else 1
    count = copies(depth * width * size)
    if kind == "bf16":
        weights = torch.randn(count, width, depth, dtype=torch.bfloat16, device="cuda")
        x = torch.randn(rows, depth, dtype=torch.bfloat16, device="cuda")
        return lambda turn: torch.matmul(x, weights[turn % count].T)
    integers = torch.randint(-127, 128, (count, width, depth), dtype=torch.int8, device="cuda")
    codes = torch.randint(-127, 128, (rows, depth), dtype=torch.int8, device="cuda")
    return lambda turn: torch._int_mm(codes, integers[turn % count].T)


def copies(size: int) -> int:
    """How many weights of `size` bytes do not fit into a cache together."""
    return max(2, -(-CACHE // size))


def seconds_of(run: Run, calls: int) -> float:
    """Of one call, by events around several that wait in the device's queue together."""
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for turn in range(calls):
        run(turn)
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3 / calls


def measure_machine() -> Machine:
    """Bandwidth of a copy of 1 GiB, read and written, and the rate of a large `_int_mm`."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a = torch.randint(-127, 128, (8192, 8192), dtype=torch.int8, device="cuda")

    def copy(_: int) -> None:
        target.copy_(source)

    def product(_: int) -> None:
        torch._int_mm(a, a.T)

    for each in (copy, product):
        seconds_of(each, 3)
    moved = min(seconds_of(copy, 10) for _ in range(5))
    return Machine(2 * (1 << 30) / moved, 8192**3 / min(seconds_of(product, 5) for _ in range(5)))


def compare(
    library: ctypes.CDLL, machine: Machine, name: str, rows: int, rounds: int, calls: int
) -> list[dict[str, object]]:
    """One linear at one number of rows: a row of the table for each contestant."""
    depth, width = LINEARS[name]
    field: dict[str, tuple[Run, float]] = {
        "torch bf16": (torch_linear("bf16", rows, depth, width), 16),
        "W4A8": (ours(library, 4, rows, depth, width), bits_of(4)),
        "W8A8": (ours(library, 8, rows, depth, width), bits_of(8)),
    }
    if rows >= LEAST_INT_MM:
        field["torch _int_mm"] = (torch_linear("int8", rows, depth, width), 8)
    seconds: dict[str, list[float]] = {key: [] for key in field}
    for run, _ in field.values():
        seconds_of(run, calls)
    for _ in range(rounds):
        for key, (run, _) in field.items():
            seconds[key].append(seconds_of(run, calls))
    return [row_of(machine, name, rows, key, bits, seconds) for key, (_, bits) in field.items()]


def row_of(
    machine: Machine, name: str, rows: int, key: str, bits: float,
    seconds: dict[str, list[float]],
) -> dict[str, object]:  # fmt: skip
    """A row of the table; `seconds` of all contestants, one a round."""
    depth, width = LINEARS[name]
    ratios = [a / b for a, b in zip(seconds["torch bf16"], seconds[key], strict=True)]
    took = median(seconds[key])
    floor = machine.floor(rows, depth, width, bits)
    return {
        "linear": name, "K × N": f"{depth}x{width}", "rows": rows, "kernel": key,
        "µs": 1e6 * took, "times bf16": median(ratios), "least … most": (min(ratios), max(ratios)),
        "floor µs": 1e6 * floor, "% of floor": 100 * floor / took,
    }  # fmt: skip


def predictions(table: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    """What boards would take for the linears of W4A8 at the same share of their own floors."""
    found: list[dict[str, object]] = []
    for board in map(targets.load, targets.names()):
        if board.tops is None or board.bandwidth_gb_s is None:
            continue
        machine = Machine(board.bandwidth_gb_s * 1e9, board.tops["int8"] * 1e12 / 2)
        for row in table:
            if row["kernel"] == "W4A8":
                depth, width = LINEARS[row["linear"]]
                floor = machine.floor(row["rows"], depth, width, bits_of(4))
                found.append({
                    "board": board.name, "linear": row["linear"], "rows": row["rows"],
                    "floor µs": 1e6 * floor, "predicted µs": 1e8 * floor / row["% of floor"],
                })  # fmt: skip
    return found


def main(
    library: Annotated[Path | None, typer.Option(help="Made by --compile.")] = None,
    compile_for: Annotated[
        tuple[int, Path] | None,
        typer.Option("--compile", help="SM and the file to make, for another machine."),
    ] = None,
    linear: Annotated[list[str] | None, typer.Option(help="Repeatable; default: all.")] = None,
    rows: Annotated[list[int] | None, typer.Option(help="Repeatable.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 7,
    calls: Annotated[int, typer.Option(min=1, help="A round.")] = 20,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Print microseconds, times cuBLAS in bf16, and the share of the floor."""
    if compile_for is not None:
        compile_library(*compile_for)
        return
    import torch

    if not torch.cuda.is_available():
        typer.echo("not measured: this machine has no GPU that PyTorch can use", err=True)
        raise typer.Exit(NOT_MEASURED)
    if library is None:
        major, minor = torch.cuda.get_device_capability()
        library = Path.cwd() / f"libdqx-launchers-sm{major}{minor}.so"
        if not library.is_file():
            compile_library(10 * major + minor, library)
    loaded, machine = ctypes.CDLL(str(library.resolve())), measure_machine()
    table: list[dict[str, object]] = []
    for name in linear or LINEARS:
        for many in rows or ROWS:
            table += compare(loaded, machine, name, many, rounds, calls)
    boards = predictions(table)
    if as_json:
        facts = {"gpu": torch.cuda.get_device_name(), "bytes/s": machine.bandwidth,
                 "multiply-adds/s": machine.rate}  # fmt: skip
        typer.echo(json.dumps({**facts, "rows": table, "predictions": boards}, indent=1))
        return
    typer.echo(
        f"{torch.cuda.get_device_name()}: {machine.bandwidth / 1e9:.4g} GB/s, "
        f"{machine.rate / 1e12:.4g} T multiply-adds/s of 8 bits, {rounds} rounds\n"
    )
    typer.echo(f"{markdown(table)}\n\nPredicted, not measured:\n\n{markdown(boards)}")


if __name__ == "__main__":
    typer.run(main)
