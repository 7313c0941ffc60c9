"""What a GPU reaches at best: measured, or as its data sheet has it."""

from dataclasses import dataclass

import targets
from tools.gpu_timing import seconds_of

COPIED = 1 << 30  # bytes
SIZE = 8192  # of the square matrices that are multiplied


@dataclass(frozen=True)
class Machine:
    """Bytes a second; multiply-adds a second of 8-bit integers and of halves."""

    name: str
    bandwidth: float
    int8: float
    halves: float


# data sheet of the SXM module: dense rates, a multiply-add being two operations
H100 = Machine("h100", 3.35e12, 1979e12 / 2, 989e12 / 2)


def boards() -> list[Machine]:
    """All targets whose rates are known, and the H100."""
    found = [H100]
    for target in map(targets.load, targets.names()):
        if target.tops is not None and target.bandwidth_gb_s is not None:
            rates = (target.tops[kind] * 1e12 / 2 for kind in ("int8", "fp16"))
            found.append(Machine(target.name, target.bandwidth_gb_s * 1e9, *rates))
    return found


def board(name: str) -> Machine:
    """ValueError with the known names if there is none of this name."""
    known = {each.name: each for each in boards()}
    if name not in known:
        raise ValueError(f"no rates of {name!r} are known, but of {', '.join(known)}")
    return known[name]


def measure_machine() -> Machine:
    """A copy of 1 GiB, read and written, and the rates of large products of torch."""
    import torch

    source = torch.randint(0, 256, (COPIED,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    codes = torch.randint(-127, 128, (SIZE, SIZE), dtype=torch.int8, device="cuda")
    halves = torch.randn(SIZE, SIZE, dtype=torch.bfloat16, device="cuda")
    products = {
        "copy": lambda _: target.copy_(source),
        "int8": lambda _: torch._int_mm(codes, codes.T),
        "halves": lambda _: torch.matmul(halves, halves.T),
    }
    best = {}
    for name, run in products.items():
        seconds_of(run, 3)
        best[name] = min(seconds_of(run, 10) for _ in range(5))
    return Machine(
        torch.cuda.get_device_name(), 2 * COPIED / best["copy"], SIZE**3 / best["int8"],
        SIZE**3 / best["halves"],
    )  # fmt: skip
