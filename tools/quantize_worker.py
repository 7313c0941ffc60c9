"""A process that quantizes linears on request: one a contestant, so that memory can be told apart.

Requests and replies are lines of JSON. This file runs in the interpreters of other packages too: it
needs torch and safetensors, and nothing of ours.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Request:
    """One linear to quantize."""

    problem: str  # safetensors file with a weight w (out, in) and inputs x (T, in), fp32
    result: str  # where to write the weight that is left, de-quantized: `weight` (out, in)
    method: str
    bits: int
    group: int
    damping: float


@dataclass(frozen=True)
class Reply:
    """What it took."""

    statistics: float  # seconds to take in the inputs
    solve: float  # seconds from there to the quantized weight
    peak: int  # bytes of memory at the most, beyond what was held before


Solve = Callable[[Request, Tensor, Tensor], tuple[Tensor, float, float]]
Ask = Callable[[Request], Reply]


def serve(prepare: Callable[[], Solve]) -> None:
    """Answer requests from stdin until it ends; `prepare` imports what is needed.

    Whatever the packages print goes to stderr.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_grad_enabled(False)
    solve = prepare()
    torch.set_num_threads(1)  # a package may have set its own number
    for line in sys.stdin:
        request = Request(**json.loads(line))
        tensors = load_file(request.problem)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (Linux, proc(5))
        held = memory("VmRSS")
        weight, statistics, solving = solve(request, tensors["w"], tensors["x"])
        reply = Reply(statistics, solving, memory("VmHWM") - held)
        save_file({"weight": weight.float().contiguous()}, request.result)
        print(json.dumps(asdict(reply)), file=replies, flush=True)


def memory(key: str) -> int:
    """VmRSS or VmHWM (the peak) of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


@contextmanager
def started(command: Sequence[str], log: Path) -> Iterator[Ask]:
    """A running process that serves; what it prints goes to the file `log`.

    RuntimeError with its last lines when it ends instead of answering.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as stderr, subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
        env=environment,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        requests, replies = process.stdin, process.stdout

        def ask(request: Request) -> Reply:
            with suppress(BrokenPipeError):  # it has ended, and there will be no answer
                print(json.dumps(asdict(request)), file=requests, flush=True)
            answer = replies.readline()
            if not answer:
                said = "\n".join(log.read_text().splitlines()[-20:])
                raise RuntimeError(f"{' '.join(command)} ended:\n{said}")
            return Reply(**json.loads(answer))

        yield ask
        requests.close()  # which ends it
