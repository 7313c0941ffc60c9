"""Mixed precision: budgets are kept, and the greedy choice is within one item of the best."""

from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.weights.allocation import (
    Item,
    bits_a_weight,
    by_sensitivity,
    within_accuracy,
    within_size,
)


def items(sizes: Sequence[tuple[int, int]]) -> list[Item]:
    """Items of (weights, loss) with 4 or 8 bits."""
    return [Item(f"group {i}", n, 4.0, 8.0, float(loss)) for i, (n, loss) in enumerate(sizes)]


SIZES = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 50)), min_size=1, max_size=7)


def gain(found: Sequence[Item], chosen: Sequence[str]) -> float:
    return sum(item.loss for item in found if item.name in chosen)


@given(SIZES, st.integers(256, 544))
def test_the_greedy_choice_is_within_one_item_of_the_best(
    sizes: list[tuple[int, int]], budget: int
) -> None:
    found, bits = items(sizes), budget / 64  # exact, and so is the comparison of all sums
    chosen = within_size(found, bits)
    assert bits_a_weight(found, chosen) <= bits
    names = [item.name for item in found]
    every = [c for k in range(len(names) + 1) for c in combinations(names, k)]
    best = max(gain(found, c) for c in every if bits_a_weight(found, c) <= bits)
    largest = max(item.loss for item in found)
    assert best - largest <= gain(found, chosen) <= best
    # nothing that is left out would still fit
    for name in set(names) - set(chosen):
        assert bits_a_weight(found, [*chosen, name]) > bits


@given(SIZES)
def test_the_order_is_by_loss_a_bit(sizes: list[tuple[int, int]]) -> None:
    order = by_sensitivity(items(sizes))
    rates = [item.loss / (4 * item.weights) for item in order]
    assert rates == sorted(rates, reverse=True)
    assert sorted(order, key=lambda item: item.name) == sorted(items(sizes), key=lambda i: i.name)
    for a, b in pairwise(order):
        assert a.loss / a.extra > b.loss / b.extra or a.name < b.name


def test_widths_are_means_over_weights() -> None:
    found = items([(30, 1), (10, 1)])
    assert bits_a_weight(found, []) == 4
    assert bits_a_weight(found, ["group 1"]) == 5
    assert bits_a_weight(found, ["group 0", "group 1"]) == 8
    assert within_size(found, 5.0) == ["group 1"]
    assert within_size(found, 4.0) == []
    assert within_size(found, 9.0) == ["group 1", "group 0"]


def test_too_small_a_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"3.9 bits a weight are too few: 4 is the least"):
        within_size(items([(3, 1)]), 3.9)


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(0, 100))
def test_the_shortest_run_that_is_accurate_enough_is_found(gains: list[int], most: int) -> None:
    order = [f"group {i}" for i in range(len(gains))]
    calls: list[int] = []

    def measure(chosen: Sequence[str]) -> float:
        assert list(chosen) == order[: len(chosen)]
        calls.append(len(chosen))
        return sum(gains[len(chosen) :])

    found = within_accuracy(order, measure, most)
    assert found == order[: len(found)]
    assert measure(found) <= most
    assert not found or measure(found[:-1]) > most
    assert len(calls) <= len(order).bit_length() + 3  # ours included


def test_an_accuracy_out_of_reach_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss of 0.1 is out of reach: 0.3"):
        within_accuracy(["a", "b"], lambda chosen: 0.3, 0.1)


def test_impossible_items_are_refused() -> None:
    with pytest.raises(ValueError, match="more bits than few"):
        Item("a", 1, 4.0, 4.0, 0.0)
    with pytest.raises(ValueError, match="more bits than few"):
        Item("a", 0, 4.0, 8.0, 0.0)
