"""Estimates against real builds, and refusals before any work."""

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

import targets
from exporter.checkpoint import Checkpoint, open_checkpoint
from exporter.errors import UserError
from exporter.planner import Needs, check_fits, estimate
from exporter.quant_options import QuantOptions
from exporter.recipes import Storage, make_recipe
from tests.fixtures_lower import CANVAS, golden, lower, random_checkpoint

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
    needs = Needs(4096, 4096, 2048)
    exact = 6144 / GIB
    check_fits(needs, CPU.model_copy(update={"memory_gib": exact}), tmp_path)
    check_fits(needs, CPU, tmp_path)  # its memory is not known
    board = CPU.model_copy(update={"memory_gib": exact * 0.999, "title": "A small board"})
    with pytest.raises(UserError, match=r"for weights and .* for activations, A small board has"):
        check_fits(needs, board, tmp_path)
    large = CPU.model_copy(update={"memory_gib": 4.5})
    with pytest.raises(UserError, match=r"4\.00 GiB for weights and 1\.00 GiB .* 4\.50 GiB"):
        check_fits(Needs(4 * GIB, 0, GIB), large, tmp_path)


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
    with pytest.raises(UserError, match=r"needs 29\.\d\d GiB for weights"):
        check_fits(needs, targets.load(name), tmp_path)
