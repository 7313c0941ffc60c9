"""What a division of a linear's work should take on a GPU, by counting: where nothing is measured.

A block of four warps goes through 64 inputs at a time. Its warps share a multiprocessor's four
quarters with those of other blocks; a stage takes a quarter as long as its instructions are issued
or its mma run, whichever is more, and at least what a copy takes to arrive. Bytes come as fast as
enough of them are under way (Little's law); what several blocks read comes from the cache.
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal

Path = Literal["mma8", "mma4", "wgmma"]

STAGE_DEPTH = 64  # inputs
LATENCY = 0.7e-6  # seconds until a copy from device memory has arrived
LAUNCH = 3e-6  # seconds of one more kernel
CACHE = 3  # times the bandwidth of device memory: of the second-level cache
REGISTERS = 65536  # of a multiprocessor
COLUMNS = {4: 256, 8: 128}  # of a block, by weight bits
WGMMA_CYCLES = 4  # of 16 x 8 x 32 bytes
WGMMA_ROOM = 227 << 10  # bytes of shared memory of a multiprocessor, SM 90


@dataclass(frozen=True)
class Gpu:
    """The largest of its compute capability that edge and desktop users have."""

    name: str
    multiprocessors: int
    clock: float  # Hz
    bandwidth: float  # bytes a second
    cycles: float  # that a quarter takes for an mma of 16 x 8 x 32 bytes
    int4: bool  # whether 4-bit mma run at twice that rate
    wgmma: bool = False


# Data sheets: boost clocks, dense 8-bit rates
GPUS = {
    80: Gpu("A100", 108, 1.41e9, 1555e9, 8, True),
    86: Gpu("RTX 3090", 82, 1.70e9, 936e9, 16, True),
    87: Gpu("Jetson AGX Orin", 16, 1.30e9, 204.8e9, 8, True),
    89: Gpu("RTX 4090", 128, 2.52e9, 1008e9, 16, True),
    90: Gpu("H100 SXM", 132, 1.75e9, 3350e9, 6, False, True),  # mma.sync reaches about 0.6 of wgmma
    110: Gpu("Jetson AGX Thor", 20, 1.57e9, 273e9, 8, False),
    120: Gpu("RTX 5090", 170, 2.41e9, 1792e9, 16, False),
}


@dataclass(frozen=True)
class Kernel:
    """An instance: counts of a warp for a stage of 64 inputs by its columns, disassembled.

    64 columns, SM 87; of `wgmma` 32, SM 90.
    """

    weight_bits: int
    path: Path
    rows: int  # of a block
    gated: bool
    registers: int

    @property
    def warps(self) -> int:
        """Of a block."""
        return COLUMNS[self.weight_bits] // (32 if self.path == "wgmma" else 64)

    @property
    def under_way(self) -> int:
        """Stages that are sent ahead."""
        return 4 if self.path == "wgmma" else 2

    @property
    def mmas(self) -> float:
        """Of 16 x 8 x 32 bytes, or of as many 4-bit ones as take that long."""
        return self.rows * (1 if self.path == "mma8" else 0.5)

    def cycles(self, gpu: Gpu) -> float:
        """That a quarter takes for a stage of one warp."""
        issued = WGMMA_CYCLES if self.path == "wgmma" else gpu.cycles
        return max(self.instructions, self.mmas * issued)

    @property
    def instructions(self) -> float:
        """mma, the turning and widening of weights, and the rest."""
        if self.path == "wgmma":  # no instructions for rows of x, but those that copy them
            return 265 + self.rows / 8 if self.weight_bits == 4 else 130 + 0.4 * self.rows
        turning = {("mma8", 4): 287, ("mma8", 8): 100, ("mma4", 4): 160}
        return self.mmas + turning[self.path, self.weight_bits] + 100 + self.rows / 2


@dataclass(frozen=True)
class Shape:
    """x (rows, depth) · weight (depth, width)."""

    rows: int
    depth: int
    width: int


def seconds(gpu: Gpu, kernel: Kernel, shape: Shape, parts: int) -> float:
    """Of one linear, rounding of its inputs left out, as it is the same for all."""
    pairs = 2 if kernel.gated else 1
    across, down = ceil(shape.width / COLUMNS[kernel.weight_bits]), ceil(shape.rows / kernel.rows)
    blocks = down * across * parts
    beside = max(1, REGISTERS // (32 * kernel.warps * kernel.registers))
    if kernel.path == "wgmma":  # two slots more than are under way; 8 KB of weights, 512 of steps
        beside = min(beside, WGMMA_ROOM // (6 * (STAGE_DEPTH * kernel.rows + 8704)))
    at_once = min(blocks, gpu.multiprocessors * beside)
    stages = ceil(shape.depth / parts / STAGE_DEPTH) * pairs

    def turn(many: int) -> float:  # of so many blocks on a multiprocessor
        cycles = kernel.cycles(gpu) * many * kernel.warps / 4
        return stages * max(cycles / gpu.clock, LATENCY / kernel.under_way)

    turns, left_over = divmod(ceil(blocks / gpu.multiprocessors), beside)
    arithmetic = turns * turn(beside) + (turn(left_over) if left_over else 0)
    weights = pairs * shape.depth * shape.width * kernel.weight_bits / 8
    left = 8 * pairs * parts * shape.rows * shape.width if parts > 1 else 0  # written and read
    stage_bytes = STAGE_DEPTH * (
        COLUMNS[kernel.weight_bits] * kernel.weight_bits / 8 + min(kernel.rows, shape.rows)
    )
    under_way = kernel.under_way * at_once * stage_bytes
    bandwidth = min(gpu.bandwidth, under_way / LATENCY)
    moved = (weights + 2 * shape.rows * (shape.depth + shape.width) + left) / bandwidth
    again = down * weights + across * pairs * shape.rows * shape.depth  # each block reads its own
    return max(arithmetic, moved, again / (CACHE * gpu.bandwidth)) + (LAUNCH if parts > 1 else 0)
