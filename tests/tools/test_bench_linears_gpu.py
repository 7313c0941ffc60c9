"""The table of linears on GPUs, from made-up seconds: nothing here is timed."""

import pytest

from tools.bench_linears_gpu import (
    BASE,
    FORMS,
    LINEARS,
    NAMED,
    STEPPED,
    floor,
    goals,
    plan,
    predictions,
    row_of,
    summary,
)
from tools.gpu_machine import Machine, board

MACHINE = Machine("made up", bandwidth=1e9, int8=1e12, halves=5e11)
NAME = "LLaDA-8B q"  # 4096 squared


def test_the_floor_is_what_takes_longer() -> None:
    """4 bits and an eighth of 4096 squared are 8.5 MB; 1 row moves 16 KB beside them."""
    moved = 4096 * 4096 * STEPPED / 8 + 2 * 8192
    assert floor(MACHINE, NAMED["W4A8"], 1, 4096, 4096)[0] == pytest.approx(moved / 1e9)
    for name, rate in (("W4A8", 1e12), (BASE.name, 5e11)):
        _, multiplied = floor(MACHINE, NAMED[name], 1000, 4096, 4096)
        assert multiplied == pytest.approx(1000 * 4096**2 / rate)


def test_a_pair_is_two_weights() -> None:
    one, pair = NAMED["W4A8"], NAMED["W4A8, gated pair"]
    assert pair.products(3, 64, 32) == 2 * one.products(3, 64, 32)
    activations = 2 * 3 * (64 + 32)
    assert pair.bytes_moved(3, 64, 32) - activations == 2 * (
        one.bytes_moved(3, 64, 32) - activations
    )
    assert pair.takes(1, "LLaDA-8B gate") and not pair.takes(1, "LLaDA-8B down")


def test_who_takes_part() -> None:
    few = {form.name for form in FORMS if form.takes(8, NAME)}
    many = {form.name for form in FORMS if form.takes(64, NAME)}
    assert few - many == {"W4A16"} and many - few == {"torch _int_mm"}


def test_ratios_are_those_of_the_same_round() -> None:
    seconds = {BASE.name: [2.0, 4.0, 9.0], "W4A8": [1.0, 1.0, 3.0]}
    row = row_of(MACHINE, NAME, 1, NAMED["W4A8"], seconds)
    assert row["times bf16"] == 3.0
    assert row["least … most"] == (2.0, 4.0)
    assert row["% of floor"] == pytest.approx(100 * floor(MACHINE, NAMED["W4A8"], 1, 4096, 4096)[0])


def test_pairs_meet_pairs() -> None:
    seconds = {BASE.name: [1.0], "torch bf16, gated pair": [6.0], "W4A8, gated pair": [2.0]}
    row = row_of(MACHINE, "LLaDA-8B gate", 1, NAMED["W4A8, gated pair"], seconds)
    assert row["times bf16"] == 3.0


def test_goals_by_the_number_of_rows() -> None:
    quantities = {
        rows: [(goal.quantity, goal.least) for goal in goals(NAMED["W4A8"], rows)]
        for rows in (1, 64, 128, 256, 1024)
    }
    assert quantities == {
        1: [("times bf16", 2.5), ("% of bandwidth", 70)],
        64: [("times bf16", 2.5)],
        128: [],
        256: [("times bf16", 1.3)],
        1024: [("times bf16", 1.3), ("% of rate", 60)],
    }
    assert not goals(BASE, 1)


def test_goals_are_met_or_missed_and_counted() -> None:
    least = max(floor(MACHINE, NAMED["W4A8"], 1, 4096, 4096))
    rows = [
        row_of(MACHINE, NAME, 1, NAMED["W4A8"], {BASE.name: [base], "W4A8": [least / share]})
        for base, share in ((4 * least, 0.8), (4 * least, 0.6))
    ]
    assert rows[0]["goals"].count("met: ") == 2
    assert [verdict.split(":")[0] for verdict in rows[1]["goals"].split("; ")] == ["missed"] * 2
    found = {row["goal"]: row for row in summary(rows)}
    bandwidth = found["70 % of the bandwidth at 32 rows or fewer"]
    assert (bandwidth["met"], bandwidth["of"]) == (1, 2)
    assert bandwidth["worst"] == pytest.approx(60)
    assert bandwidth["at"] == "LLaDA-8B q, 1 rows"


def test_a_plan_says_when_goals_are_met() -> None:
    """A row that takes as long as the plan allows, against cuBLAS at its floor, meets them all."""
    machine = board("jetson-orin")
    for planned in plan(machine, [NAME, "SDAR-4B gate"], [1, 64, 512]):
        limit = planned["goals met within µs"]
        form, name = NAMED[str(planned["kernel"])], str(planned["linear"])
        rows = int(str(planned["rows"]))
        assert (limit is None) == (not goals(form, rows))
        if isinstance(limit, float):
            base = float(str(planned["bf16 floor µs"])) / 1e6
            seconds = {key: [base] for key in (BASE.name, "torch bf16, gated pair")}
            seconds[form.name] = [limit * 0.9999 / 1e6]
            assert "missed" not in row_of(machine, name, rows, form, seconds)["goals"]
            seconds[form.name] = [limit * 1.0001 / 1e6]
            assert "missed" in row_of(machine, name, rows, form, seconds)["goals"]


def test_boards_are_predicted_at_the_same_share_of_their_floors() -> None:
    rows = [{"linear": NAME, "rows": 32, "kernel": kernel, "% of floor": 50.0}
            for kernel in ("W4A8", "W8A8")]  # fmt: skip
    (found,) = predictions(rows, [board("jetson-orin")])
    moved = 4096 * 4096 * STEPPED / 8 + 2 * 32 * 8192
    assert found["floor µs"] == pytest.approx(moved / 204.8e9 * 1e6)
    assert found["predicted µs"] == pytest.approx(2 * moved / 204.8e9 * 1e6)


def test_shapes_are_whole_groups() -> None:
    assert all(depth % 128 == 0 and width % 32 == 0 for depth, width in LINEARS.values())
