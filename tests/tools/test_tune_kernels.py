"""The table of tiles: complete, what the tuner writes, and what plans are made of."""

import ctypes
import re
from pathlib import Path

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ort_ops.linear_w4a8.launch import PATHS, Call, Plan
from tests.launched import Launched, host_compiler
from tests.launched_linear import linear_launcher
from tools.tile_model import GPUS, Kernel, Shape, seconds
from tools.tune_kernels import BLOCKS, FORMS, MOST_PARTIAL_BYTES, NOT_MEASURED, TILES, Choice, main

RULE = re.compile(r"\{(\d+), (\d), (\w+), (\w+), (\w+), (\d+), Path::(\w+), (\d+), (\d)\}")


def run(*words: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, list(words))
    return done.exit_code, done.output


def test_the_table_is_what_the_tuner_writes(tmp_path: Path) -> None:
    written = tmp_path / "tiles.h"
    written.write_text(TILES.read_text())  # with what was measured
    assert run("--to", str(written))[0] == 0
    assert written.read_text() == TILES.read_text()


def test_what_was_measured_stays(tmp_path: Path) -> None:
    written = tmp_path / "tiles.h"
    text = TILES.read_text().replace("SM 87: model of Jetson AGX Orin", "SM 87: measured on it")
    rule = next(line for line in text.splitlines() if line.startswith("    {87, 4"))
    text = text.replace(rule, rule[:-3] + "4},")
    written.write_text(text)
    assert run("--to", str(written))[0] == 0
    assert written.read_text() == text


def test_without_a_gpu_nothing_is_written(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    written = tmp_path / "tiles.h"
    code, said = run("--measure", "--to", str(written))
    assert code == NOT_MEASURED and "no GPU" in said and not written.exists()


def test_every_form_has_a_rule_for_any_number_of_rows() -> None:
    rules: dict[tuple[str, ...], list[tuple[int, str, int, int]]] = {}
    for *form, most, path, rows, blocks in RULE.findall(TILES.read_text()):
        rules.setdefault(tuple(form), []).append((int(most), path, int(rows), int(blocks)))
    for sm, gpu in GPUS.items():
        for form in FORMS:
            flags = (str(flag).lower() for flag in (form.int4, form.channel, form.gated))
            found = rules.pop((str(sm), str(form.weight_bits), *flags), [])
            if form.int4 and not gpu.int4:
                assert not found
                continue
            bounds = [each[0] for each in found]
            assert bounds == sorted(set(bounds))
            assert bounds[-1] == 2**31 - 1
            instances = {(kernel.path, kernel.rows) for kernel in form.kernels(gpu.wgmma)}
            assert all((path, rows) in instances for _, path, rows, _ in found)
            assert all(blocks in BLOCKS for *_, blocks in found)
    assert not rules


def test_the_model_knows_what_pays() -> None:
    """More parts for few rows on a large GPU; more rows a block for many; bytes take their time."""
    gpu, few, many = GPUS[80], Shape(8, 4096, 4096), Shape(1024, 4096, 4096)
    kernels = {rows: Kernel(4, "mma8", rows, False, 128) for rows in (16, 64)}
    assert seconds(gpu, kernels[16], few, 8) < seconds(gpu, kernels[16], few, 1)
    assert seconds(gpu, kernels[64], many, 1) < seconds(gpu, kernels[16], many, 1)
    assert seconds(gpu, kernels[16], few, 8) > 4096 * 4096 / 2 / gpu.bandwidth


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    if host_compiler() is None:
        pytest.skip("no g++")
    return linear_launcher(tmp_path_factory, gpu=False)


@settings(max_examples=200)
@given(
    sm=st.sampled_from([75, 80, 86, 87, 88, 89, 90, 100, 110, 120, 121]),
    rows=st.integers(1, 3000),
    depth=st.integers(1, 150),
    width=st.integers(1, 600),
    form=st.sampled_from(FORMS),
)
def test_plans_are_choices_of_the_tuner(
    launched: Launched, sm: int, rows: int, depth: int, width: int, form: object
) -> None:
    """plan.cu and the tuner divide alike, and parts have room."""
    weight_bits, int4, channel, gated = (
        getattr(form, name) for name in ("weight_bits", "int4", "channel", "gated")
    )
    depth, width = 128 * depth, 32 * width
    launched.library.stand_for(sm)
    along = depth if channel else 64
    call = Call(
        rows, depth, width, 64, along, 1 / 127, weight_bits, 4 if int4 else 8, channel, gated, 1, 1
    )
    plan = Plan()
    launched.library.plan(ctypes.byref(call), ctypes.byref(plan))
    path, wide = PATHS[plan.path], sm == 90 and channel
    assert path in ({"mma4"} if int4 and 80 <= sm < 90 else {"mma8", "wgmma"} if wide else {"mma8"})
    assert plan.parts == 1 or rows <= 128
    assert plan.parts * rows * width * 4 * (1 + gated) <= MOST_PARTIAL_BYTES or plan.parts == 1
    kernels = [k for k in form.kernels(wide) if (k.path, k.rows) == (path, plan.rows)]  # type: ignore[attr-defined]
    if kernels:
        small = type(GPUS[80])("host", 4, 0, 0, 0, False)  # as many as the host says it has
        possible = {Choice(kernels[0], b).parts(small, Shape(rows, depth, width)) for b in BLOCKS}
        assert plan.parts in possible
