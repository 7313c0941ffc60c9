"""Options that need less, for a model at the published sizes of LLaDA-8B."""

from dataclasses import replace

import pytest

import targets
from exporter.alternatives import alternatives
from exporter.families import Spec
from exporter.planner import estimate
from exporter.quant_options import QuantOptions
from exporter.recipes import make_recipe
from tests.fixtures_lower import golden

BOARD = targets.load("jetson-orin-nx")


@pytest.fixture(scope="module")
def spec() -> Spec:
    return replace(
        golden("llada").spec, layers=32, width=4096, heads=32, kv_heads=32, head_dim=128,
        mlp_width=12288, vocab_size=126464,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["fp16", "w8a8", "w4a16"])
def test_every_one_needs_less(spec: Spec, name: str) -> None:
    recipe = make_recipe(name, spec, QuantOptions(), BOARD.compute)
    asked = sum(estimate(spec, recipe, 4096).memory(BOARD).values())
    found = list(alternatives(spec, recipe, 4096, BOARD))
    assert found and all(sum(needs.memory(BOARD).values()) < asked for _, needs in found)
    assert len(dict(found)) == len(found)


def test_what_changes_least_comes_first(spec: Spec) -> None:
    recipe = make_recipe("fp16", spec, QuantOptions(), BOARD.compute)
    options = [options for options, _ in alternatives(spec, recipe, 1024, BOARD)]
    assert options == [
        "--kv-bits 8", "--max-canvas 512", "--max-canvas 256",
        "--recipe w8a16", "--recipe w4a16",
        "--recipe w8a16 --max-canvas 512", "--recipe w8a16 --max-canvas 256",
        "--recipe w4a16 --max-canvas 512", "--recipe w4a16 --max-canvas 256",
    ]  # fmt: skip


def test_nothing_is_named_that_changes_nothing(spec: Spec) -> None:
    smallest = make_recipe("w4a16", spec, QuantOptions(kv_bits=8), BOARD.compute)
    assert list(alternatives(spec, smallest, 256, BOARD)) == []


def test_the_numbers_are_those_of_the_options(spec: Spec) -> None:
    recipe = make_recipe("w8a16", spec, QuantOptions(), BOARD.compute)
    found = dict(alternatives(spec, recipe, 1024, BOARD))
    narrow = make_recipe("w8a16", spec, QuantOptions(kv_bits=8), BOARD.compute)
    smaller = make_recipe("w4a16", spec, QuantOptions(), BOARD.compute)
    assert found["--kv-bits 8"] == estimate(spec, narrow, 1024)
    assert found["--recipe w4a16 --max-canvas 256"] == estimate(spec, smaller, 256)
