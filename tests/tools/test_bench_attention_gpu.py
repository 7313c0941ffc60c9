"""The table of attention on GPUs, from made-up seconds: nothing here is timed."""

import pytest

from tools.attention_forms import BASE, NAMED, SHAPES, Shape, floor
from tools.bench_attention_gpu import goals, memory, plan, predictions, row_of, summary
from tools.gpu_machine import Machine

MACHINE = Machine("made up", bandwidth=1e9, int8=2e12, halves=1e12)
SHAPE = Shape(batch=2, queries=32, keys=1024, heads=28, kv_heads=4)


def test_memory_of_caches() -> None:
    """A code for each number, and a scale of two bytes a key: about half, and about a quarter."""
    shares = {row["kept"]: row["of fp16"] for row in memory()}
    assert shares["fp16"] == 1
    assert shares["cache of 8 bits"] == pytest.approx(0.5, abs=0.01)
    assert shares["cache of 4 bits"] == pytest.approx(0.25, abs=0.01)
    (fp16,) = [row["KiB a token"] for row in memory() if row["kept"] == "fp16"]
    assert fp16 == 2 * 32 * 32 * 128 * 2 / 1024


def test_ratios_are_those_of_the_same_round() -> None:
    seconds = {BASE: [2.0, 4.0, 9.0], "8 bits": [1.0, 1.0, 3.0]}
    row = row_of(MACHINE, SHAPE, NAMED["8 bits"], seconds, {"normal": (0.01, 1e-4)})
    assert row["times flash bf16"] == 3.0
    assert row["least … most"] == (2.0, 4.0)
    assert row["error, normal"] == 0.01 and row["1 - cosine, normal"] == 1e-4
    assert row["error, diffuse rows"] is None


def test_without_flash_there_is_no_ratio() -> None:
    row = row_of(MACHINE, SHAPE, NAMED["8 bits"], {"8 bits": [1.0]}, {})
    assert row["times flash bf16"] is None and row["µs"] == 1e6


def test_a_plan_holds_ours_alone() -> None:
    rows = plan(MACHINE, [SHAPE])
    assert {row["kernel"] for row in rows} == {form.name for form in NAMED.values() if form.ours}
    by_name = {row["kernel"]: row for row in rows}
    small, large = by_name["cache of 4 bits"], by_name["8 bits"]
    assert float(str(small["floor µs"])) <= float(str(large["floor µs"]))


def test_boards_are_predicted_at_the_same_share_of_their_floors() -> None:
    shape = next(shape for shape in SHAPES if shape.batch == 1)
    rows = [{"shape": shape.title, "kernel": name, "% of floor": 50.0} for name in ("8 bits", BASE)]
    (found,) = predictions(rows, [MACHINE])
    least = max(floor(MACHINE, NAMED["8 bits"], shape))
    assert found["predicted µs"] == pytest.approx(2e6 * least)


def test_goals_by_shape() -> None:
    """Canvases against flash, few queries over a cache against flash and the bandwidth."""
    wanted = {
        ("8 bits", 1024, 1024): [("times flash bf16", 1.5)],
        ("8 bits", 512, 512): [],
        ("8 bits", 32, 1024): [],
        ("cache of 8 bits", 32, 256): [("times flash bf16", 1.8), ("% of bandwidth", 70)],
        ("cache of 8 bits", 1024, 1024): [],
        (BASE, 1024, 1024): [],
    }
    for (name, queries, keys), quantities in wanted.items():
        shape = Shape(1, queries, keys, 32, 32)
        found = goals(NAMED[name], shape)
        assert [(goal.quantity, goal.least) for goal in found] == quantities


def test_goals_are_met_or_missed() -> None:
    shape = next(shape for shape in SHAPES if shape.queries == 32)
    moved = floor(MACHINE, NAMED["cache of 8 bits"], shape)[0]
    seconds = {BASE: [2 * moved], "cache of 8 bits": [moved]}
    row = row_of(MACHINE, shape, NAMED["cache of 8 bits"], seconds, {})
    assert row["% of bandwidth"] == pytest.approx(100)
    assert row["goals"].count("met: ") == 2
    told = summary([row])
    assert [(each["met"], each["of"], each["at"]) for each in told] == [(1, 1, shape.title)] * 2
    seconds = {BASE: [moved], "cache of 8 bits": [moved]}
    row = row_of(MACHINE, shape, NAMED["cache of 8 bits"], seconds, {})
    assert row["goals"].startswith("missed: 1.8 times")
