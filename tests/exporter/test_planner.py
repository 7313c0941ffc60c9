"""Estimates against real builds, and refusals before any work."""

import math
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import targets
from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.decoding import describe_model, loop_facts
from exporter.errors import UserError
from exporter.families import block_shapes
from exporter.linear_groups import group_of_each
from exporter.lower import write_weights
from exporter.planner import Needs, bits_a_weight, cache_bytes, check_fits, estimate
from exporter.progress import Progress
from exporter.prompts import used_vocabulary
from exporter.quant_options import QuantOptions
from exporter.recipes import Recipe, Storage, make_recipe
from exporter.simulate import turned
from exporter.tensor_files import read_header
from tests.fixtures_lower import CANVAS, golden, lower, random_checkpoint
from tests.made_up_states import run_passes

GIB = 2**30
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """Large enough for padding to pages and tables to be small change, as in real models."""
    folder = tmp_path_factory.mktemp("large")
    sizes = {"width": 512, "mlp": 1024, "vocab": 4096, "layers": 1, "heads": 8}
    return {
        f: open_checkpoint(random_checkpoint(folder / f, f, **sizes)) for f in ("llada", "dream")
    }


@pytest.mark.parametrize(
    ("family", "recipe", "options", "compute"),
    [
        ("llada", "fp32", QuantOptions(), "fp32"),
        ("dream", "fp16", QuantOptions(), "fp32"),
        ("llada", "w4a16-rtn", QuantOptions(), "fp32"),
        ("dream", "w4a16-rtn", QuantOptions(group=32, embed_bits=8), "fp32"),
        ("llada", "w8a16-rtn", QuantOptions(head_bits=16), "fp32"),
        ("llada", "w8a16-rtn", QuantOptions(head_bits=16), "fp16"),
    ],
)
def test_estimates_are_the_size_of_the_real_files(
    family: str,
    recipe: str,
    options: QuantOptions,
    compute: Storage,
    checkpoints: dict[str, Checkpoint],
    tmp_path: Path,
) -> None:
    checkpoint = checkpoints[family]
    lowered = lower(checkpoint, recipe, tmp_path, options, compute=compute)
    needs = estimate(checkpoint.spec, lowered.recipe, CANVAS)
    real = lowered.weights.stat().st_size
    assert abs(needs.weights - real) <= 0.02 * real
    if lowered.quantized is None:
        assert needs.work == 0
    else:
        work = sum(f.stat().st_size for f in lowered.quantized.folder.iterdir())
        assert abs(needs.work - work) <= 0.02 * work


FILE_PARTS = ("", ".scale", ".steps", ".left", ".right")  # of a linear in the weights file
BLOCK_PARTS = (".codes", ".scales", ".steps", ".channel", ".left", ".right")


@torch.no_grad()
@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("w4a16-rtn", QuantOptions()),
        ("w8a16-rtn", QuantOptions(group=32)),
        ("w8a8-rtn", QuantOptions()),
        ("w4a8-rtn", QuantOptions()),
        ("w4a4-quarot+token", QuantOptions()),
        ("w4a4-rtn", QuantOptions()),
        ("w4a16-lorc", QuantOptions(rank=5)),
        ("w4a8-lorc", QuantOptions(rank=200)),  # more than a linear has
    ],
)
@pytest.mark.parametrize("high", [frozenset(), frozenset({(0, "mlp input"), (2, "mlp output")})])
def test_bits_a_weight_are_those_of_the_files_to_the_byte(
    family: str,
    name: str,
    options: QuantOptions,
    high: frozenset[tuple[int, str]],
    tmp_path: Path,
) -> None:
    """Tensors begin at pages, which pads the file, and 4-bit codes fill whole bytes here."""
    checkpoint = golden(family)
    recipe = replace(make_recipe(name, checkpoint.spec, options, "fp32"), high=high)
    sizes = sizes_of_linears(checkpoint, recipe, tmp_path)
    count = sum(
        math.prod(block_shapes(checkpoint.spec, i)[name])
        for i in range(checkpoint.spec.layers)
        for name in group_of_each(checkpoint.spec, i)
    )
    told = bits_a_weight(checkpoint.spec, recipe) * count / 8
    assert told == pytest.approx(sizes[0], rel=1e-12)
    assert estimate(checkpoint.spec, recipe, CANVAS).work == pytest.approx(sizes[1], abs=1)


@pytest.mark.parametrize("family", ["llada2", "lladamoe"])
def test_experts_count_to_the_byte(family: str, tmp_path: Path) -> None:
    spec = golden(family).spec
    recipe = make_recipe("w4a16-rtn", spec, QuantOptions(), "fp32")
    sizes = sizes_of_linears(golden(family), recipe, tmp_path)
    count = sum(
        math.prod(block_shapes(spec, index)[name])
        for index in range(spec.layers)
        for name in group_of_each(spec, index)
    )
    assert bits_a_weight(spec, recipe) == pytest.approx(8 * sizes[0] / count, rel=1e-12)
    assert estimate(spec, recipe, CANVAS).work == pytest.approx(sizes[1], abs=1)


def test_the_last_group_of_a_ragged_linear_has_a_whole_scale(tmp_path: Path) -> None:
    sizes = {"width": 72, "mlp": 100, "vocab": 64, "layers": 1, "heads": 4}
    checkpoint = open_checkpoint(random_checkpoint(tmp_path / "model", "llada", **sizes))
    recipe = make_recipe("w4a16-rtn", checkpoint.spec, QuantOptions(), "fp32")
    real, _ = sizes_of_linears(checkpoint, recipe, tmp_path)
    count = 4 * 72 * 72 + 3 * 72 * 100
    assert bits_a_weight(checkpoint.spec, recipe) == pytest.approx(8 * real / count, rel=1e-12)
    # 72 inputs have three groups of 32, 100 have four
    scales = 4 * 72 * 3 + 2 * 100 * 3 + 72 * 4
    assert real == count / 2 + 2 * scales


def sizes_of_linears(checkpoint: Checkpoint, recipe: Recipe, folder: Path) -> tuple[int, int]:
    """Bytes of the blocks' linears in the weights file, and in the work folder."""
    quantized = run_passes(checkpoint, recipe, folder / "work")
    assert quantized is not None
    described = describe_model(checkpoint, "0" * 64, used_vocabulary(checkpoint), CANVAS)
    (folder / "bundle").mkdir()
    stored = write_weights(
        turned(checkpoint, recipe), quantized, recipe, loop_facts(described), folder / "bundle",
        Progress(),
    )  # fmt: skip
    layers = range(checkpoint.spec.layers)
    linears = [list(group_of_each(checkpoint.spec, i)) for i in layers]
    names = [f"{i}.{name}{part}" for i in layers for name in linears[i] for part in FILE_PARTS]
    entries = [read_header(file) for file in quantized.folder.glob("*.safetensors")]
    parts = [name + part for name in {n for each in linears for n in each} for part in BLOCK_PARTS]
    return (
        sum(stored.tensors[name].length or 0 for name in names if name in stored.tensors),
        sum(block[part].size for block in entries for part in parts if part in block),
    )


@pytest.mark.parametrize(("name", "bits"), [("fp32", 32.0), ("fp16", 16.0)])
def test_floats_take_their_own_bits(name: str, bits: float) -> None:
    spec = golden("llada").spec
    assert bits_a_weight(spec, make_recipe(name, spec, QuantOptions(), "fp32")) == bits


def test_a_tied_head_is_stored_beside_the_embedding() -> None:
    """Graphs read rows of one and columns of the other."""
    spec = golden("llada").spec
    recipe = make_recipe("fp32", spec, QuantOptions(), "fp32")
    tied = replace(spec, tied=True)
    assert estimate(tied, recipe, CANVAS).weights == estimate(spec, recipe, CANVAS).weights


def test_a_longer_canvas_needs_more_memory_and_no_more_disk() -> None:
    spec = golden("llada").spec
    recipe = make_recipe("w4a16", spec, QuantOptions(), "fp32")
    short, long = estimate(spec, recipe, 64), estimate(spec, recipe, 640)
    assert (short.weights, short.work) == (long.weights, long.work)
    assert short.disk == short.weights + short.work
    assert long.activations > 10 * short.activations  # attention scores grow with the square
    assert long.cache == 10 * short.cache == 640 * cache_bytes(spec, recipe)


def test_engines_hold_the_weights_and_code_each() -> None:
    spec = golden("llada").spec
    recipe = make_recipe("w4a16", spec, QuantOptions(), "fp16")
    none, two = estimate(spec, recipe, 64), estimate(spec, recipe, 64, engines=2)
    assert none.engines == 0 and two.engines == 2 * (none.weights + none.code)
    deeper = estimate(replace(spec, layers=4 * spec.layers), recipe, 64)
    assert none.code < deeper.code < 4 * none.code  # some of it is there once
    assert two.disk - none.disk == two.engines


def test_memory_counts_engine_code_where_there_are_engines() -> None:
    needs = Needs(weights=8, work=100, activations=4, engines=1000, cache=2, code=1)
    assert sum(needs.memory(targets.load("jetson-orin")).values()) == 15
    assert sum(needs.memory(targets.load("cpu")).values()) == 14


CPU = targets.load("cpu")
NEEDS = Needs(weights=4 * GIB, work=6 * GIB, activations=GIB)


def test_a_disk_that_is_too_small_is_refused_with_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> Usage:
        asked.append(path)
        return Usage(20 * GIB, 10.5 * GIB, int(9.5 * GIB))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    out = tmp_path / "not" / "there" / "yet"
    with pytest.raises(UserError, match=r"about 10\.00 GiB of disk, .* has 9\.50 GiB") as error:
        check_fits(NEEDS, CPU, out)
    assert asked == [tmp_path]  # the disk that the folder will be on
    assert str(tmp_path) in str(error.value)
    check_fits(Needs(4 * GIB, 5 * GIB, GIB), CPU, out)


def test_a_board_that_is_too_small_is_refused_with_numbers(tmp_path: Path) -> None:
    needs = Needs(4096, 4096, 2048, cache=1024)
    exact = 7168 / GIB
    check_fits(needs, CPU.model_copy(update={"memory_gib": exact}), tmp_path)
    check_fits(needs, CPU, tmp_path)  # its memory is not known
    board = CPU.model_copy(update={"memory_gib": exact * 0.999, "title": "A small board"})
    with pytest.raises(UserError, match=r"for weights, .* for activations, .* A small board has"):
        check_fits(needs, board, tmp_path)
    large = CPU.model_copy(update={"memory_gib": 5.5})
    said = r"needs 6\.00 GiB: 4\.00 GiB for weights, 1\.00 GiB .*, 1\.00 GiB .* has 5\.5 GiB$"
    with pytest.raises(UserError, match=said):
        check_fits(Needs(4 * GIB, 0, GIB, cache=GIB), large, tmp_path)


def test_what_the_system_keeps_is_not_there_for_the_model(tmp_path: Path) -> None:
    board = CPU.model_copy(update={"memory_gib": 8.0, "reserved_gib": 1.5})
    check_fits(Needs(6 * GIB, 0, GIB // 2), board, tmp_path)
    with pytest.raises(UserError, match=r"has 8 GiB, of which its system keeps 1\.5 GiB"):
        check_fits(Needs(6 * GIB, 0, GIB), board, tmp_path)


def test_a_refusal_names_what_would_fit(tmp_path: Path) -> None:
    board = CPU.model_copy(update={"memory_gib": 4.0})
    others = [("--a", Needs(5 * GIB, 0, 0)), ("--b", Needs(3 * GIB, 0, GIB)),
              *((f"--c {n}", Needs(GIB, 0, 0)) for n in range(9))]  # fmt: skip
    with pytest.raises(UserError) as error:
        check_fits(NEEDS, board, tmp_path, iter(others))
    assert error.value.hint == (
        "It fits with `--b` (4.00 GiB) or `--c 0` (1.00 GiB) or `--c 1` (1.00 GiB)"
    )
    with pytest.raises(UserError) as error:
        check_fits(NEEDS, board, tmp_path, others[:1])
    assert "smaller model" in error.value.hint


SMALL = [n for n in targets.names() if 0 < (targets.load(n).memory_gib or 0) < 29]


@pytest.mark.parametrize("name", SMALL)
def test_an_8b_model_in_fp32_fits_no_small_board(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLaDA-8B at its published sizes: 8.0e9 weights of 4 bytes, against what each board has."""
    spec = replace(
        golden("llada").spec, layers=32, width=4096, heads=32, kv_heads=32, head_dim=128,
        mlp_width=12288, vocab_size=126464,
    )  # fmt: skip
    needs = estimate(spec, make_recipe("fp32", spec, QuantOptions(), "fp32"), 1024)
    assert needs.weights == pytest.approx(8.0e9 * 4, rel=0.005)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 100 * GIB))
    with pytest.raises(UserError, match=r"29\.\d\d GiB for weights"):
        check_fits(needs, targets.load(name), tmp_path)
