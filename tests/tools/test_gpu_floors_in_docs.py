"""Floors in docs/performance.md are those that `bench_kernels --plan` computes."""

import re
from pathlib import Path

from tools.attention_forms import NAMED, Shape, floor
from tools.bench_linears_gpu import LINEARS, plan
from tools.gpu_machine import board

DOCS = Path(__file__).parents[2] / "docs" / "performance.md"
BOARDS = ("h100", "jetson-orin", "jetson-thor")
ATTENTION = {"floats given": "8 bits", "floats given, P·V in fp16": "8 bits, P·V in fp16"}


def shown(microseconds: object) -> str:
    value = float(str(microseconds))
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def rows(pattern: str) -> list[tuple[str, ...]]:
    found = re.findall(pattern, DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    return found


def test_of_linears() -> None:
    names = {f"{depth} × {width}": name for name, (depth, width) in LINEARS.items()}
    for shape, many, *cells in rows(
        r"^\| (\d+ × \d+) \| (\d+) \| (.+ / .+ / .+) \| (.+) \| (.+) \|$"
    ):
        for name, cell in zip(BOARDS, cells, strict=True):
            planned = plan(board(name), [names[shape]], [int(many)])
            (row,) = (each for each in planned if each["kernel"] == "W4A8")
            keys = ("floor µs", "bf16 floor µs", "goals met within µs")
            assert cell == " / ".join(shown(row[key]) for key in keys)


def test_of_attention() -> None:
    pattern = r"^\| (\d+) \| (\d+) \| ([^|]+) \| ([^|/]+ / [^|/]+) \| (.+) \| (.+) \|$"
    for queries, keys, kernel, *cells in rows(pattern):
        shape = Shape(1, int(queries), int(keys), 32, 32)
        forms = (NAMED[ATTENTION.get(kernel, kernel)], NAMED["SDPA flash, bf16"])
        for name, cell in zip(BOARDS, cells, strict=True):
            least = (1e6 * max(floor(board(name), form, shape)) for form in forms)
            assert cell == " / ".join(map(shown, least))
