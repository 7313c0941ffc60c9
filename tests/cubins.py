"""Kernels as nvcc makes them for GPUs: their resources and their instructions."""

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ort_ops.build import ROOT

NVCC = shutil.which("nvcc")
# compute capability × 10 of A100, RTX 30, Orin, RTX 40, H100, Thor and RTX 50
EVERY_GPU = (80, 86, 87, 89, 90, 110, 120)
SUFFIX = {90: "a"}  # wgmma belongs to SM 90 alone

ASSEMBLED = re.compile(
    r"Compiling entry function '(\w+)' for 'sm_(\d+)\w*'.*?(\d+) bytes stack frame, "
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)
INSTRUCTION_BYTES = 16
INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Za-z0-9_.]*)([^;]*);", re.MULTILINE
)


@dataclass(frozen=True)
class Kernel:
    """What the assembler said of one kernel for one GPU."""

    name: str  # mangled
    gpu: int
    registers: int
    spilled: int  # bytes
    stack: int  # bytes: arrays that are not in registers


@dataclass(frozen=True)
class Instruction:
    """One line of a listing."""

    address: int
    operation: str  # with its suffixes
    operands: str

    @property
    def target(self) -> int | None:
        """Where a jump or a call goes."""
        found = re.search(r"\b0x([0-9a-f]+)\b", self.operands)
        return int(found[1], 16) if found else None


@dataclass(frozen=True)
class Listing:
    """A kernel's instructions for one GPU."""

    name: str  # mangled
    gpu: int
    code: tuple[Instruction, ...]

    def uses(self, operation: str) -> bool:
        """Whether a name of an operation begins with this."""
        return any(each.operation.startswith(operation) for each in self.code)

    def loops_with(self, operation: str) -> list["Listing"]:
        """The innermost loops that hold an `operation`.

        A loop ends with a jump back to where it begins. Rare cases, which stand behind the end of
        the kernel, jump back as well.
        """
        spans = [
            (each.target, each.address)
            for each in self.code
            if each.operation.startswith("BRA") and each.target is not None
        ]
        inner: list[tuple[int, int]] = []
        for first, last in sorted(spans, key=lambda span: span[1] - span[0]):
            loop = self._between(first, last)
            if not loop.uses(operation) or loop.uses("EXIT"):
                continue
            if not any(first <= a and b <= last for a, b in inner):
                inner.append((first, last))
        return [self._between(*span) for span in inner]

    def calls(self) -> list[Instruction]:
        """Calls of functions. GPUs before SM 90 leave a loop by a CALL to what stands behind it."""
        first, behind = self.code[0].address, self.code[-1].address + 2 * INSTRUCTION_BYTES
        return [
            each
            for each in self.code
            if each.operation.startswith("CALL")
            and not (each.target is not None and first <= each.target <= behind)
        ]

    def _between(self, first: int, last: int) -> "Listing":
        code = tuple(each for each in self.code if first <= each.address <= last)
        return Listing(self.name, self.gpu, code)


@dataclass(frozen=True)
class Compiled:
    """One source of `ort_ops` for some GPUs."""

    image: Path
    log: str  # of the assembler

    @cached_property
    def kernels(self) -> list[Kernel]:
        return [
            Kernel(name, int(gpu), int(registers), int(stores) + int(loads), int(stack))
            for name, gpu, stack, stores, loads, registers in ASSEMBLED.findall(self.log)
        ]

    @cached_property
    def listings(self) -> list[Listing]:
        """Needs `disassembler()`."""
        return listings_of(disassembled(self.image))


class Compiler:
    """Compiles each source once for all GPUs, into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Compiled] = {}

    def __call__(self, source: str) -> Compiled:
        """`source` below `ort_ops`; a warning is an error."""
        if source not in self._made:
            self._made[source] = self._compile(source)
        return self._made[source]

    def _compile(self, source: str) -> Compiled:
        assert NVCC is not None
        image = self._folder / f"{source.replace('/', '-')}.fatbin"
        names = [f"{gpu}{SUFFIX.get(gpu, '')}" for gpu in EVERY_GPU]
        versions = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in names]
        options = ["-std=c++17", "-Xptxas=-v", "-Werror=all-warnings", f"--threads={_threads()}"]
        done = subprocess.run(
            [NVCC, *options, *versions, "-fatbin", "-o", str(image), str(ROOT / source)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return Compiled(image, done.stderr)


def disassembler() -> Path | None:
    """The folder of cuobjdump and nvdisasm: CUDA's own, or that of a package (the `sass` extra)."""
    found = shutil.which("cuobjdump")
    folders = [Path(found).parent] if found else []
    for package, below in (("nvidia", "cu13/bin"), ("triton", "backends/nvidia/bin")):
        spec = importlib.util.find_spec(package)
        if spec is not None:
            folders += [Path(place) / below for place in spec.submodule_search_locations or ()]
    both = ("cuobjdump", "nvdisasm")
    return next((at for at in folders if all((at / name).is_file() for name in both)), None)


def disassembled(image: Path) -> str:
    """All kernels of an image, for all of its GPUs."""
    folder = disassembler()
    assert folder is not None
    path = os.pathsep.join((str(folder), os.environ["PATH"]))  # one program calls the other
    done = subprocess.run(
        [folder / "cuobjdump", "-sass", image], capture_output=True, text=True, check=True,
        env={**os.environ, "PATH": path},
    )  # fmt: skip
    return done.stdout


def listings_of(text: str) -> list[Listing]:
    """All kernels of what cuobjdump prints."""
    gpu, found = 0, []
    for part in re.split(r"(?=\bcode for sm_|\bFunction : )", text):
        if head := re.match(r"code for sm_(\d+)", part):
            gpu = int(head[1])
        elif head := re.match(r"Function : (\w+)", part):
            lines = INSTRUCTION.findall(part)
            code = (Instruction(int(at, 16), name, operands) for at, name, operands in lines)
            found.append(Listing(head[1], gpu, tuple(code)))
    return found


def _threads() -> int:
    return min(4, os.cpu_count() or 1)
