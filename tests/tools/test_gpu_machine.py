"""Rates of boards, as floors and predictions take them."""

import pytest

import targets
from tools.gpu_machine import H100, board, boards


def test_boards_are_targets_with_rates() -> None:
    found = {machine.name: machine for machine in boards()}
    assert {"h100", "jetson-orin", "jetson-thor"} <= set(found)
    orin = targets.load("jetson-orin")
    assert orin.tops is not None and orin.bandwidth_gb_s is not None
    assert found["jetson-orin"].bandwidth == orin.bandwidth_gb_s * 1e9
    assert 2 * found["jetson-orin"].int8 == orin.tops["int8"] * 1e12
    assert 2 * found["jetson-orin"].halves == orin.tops["fp16"] * 1e12


def test_a_board_by_its_name() -> None:
    assert board("h100") is H100
    with pytest.raises(ValueError, match="'orin' are known, but of h100, jetson-orin"):
        board("orin")
