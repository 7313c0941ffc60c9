"""Mixed precision: budgets are kept, and what is sensitive gets the bits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from exporter.allocate import allocate, divergence
from exporter.checkpoint import Checkpoint
from exporter.errors import UserError
from exporter.float_session import FloatModel
from exporter.planner import bits_a_weight
from exporter.progress import Progress
from exporter.quant_options import QuantOptions
from exporter.quantize import quantize
from exporter.recipes import Recipe, make_recipe
from exporter.simulate import simulated, turned
from exporter.work import open_work
from passes.base import Alone
from passes.calibrate.states import CalibrationSet
from tests.fixtures_lower import golden
from tests.made_up_states import calibration


def allocated(
    checkpoint: Checkpoint, recipe: Recipe, states: CalibrationSet, folder: Path
) -> tuple[Recipe, float]:
    """The recipe with its 8-bit groups, and the KL to float that it has in the end."""
    floats, model = FloatModel(checkpoint), FloatModel(turned(checkpoint, recipe))
    with open_work(folder) as work, torch.no_grad():
        found = allocate(floats, model, "d", states, recipe, Alone(), work, Progress())
        quantized = quantize(model, "d", states, found, Alone(), work, Progress())
        return found, divergence(floats, simulated(checkpoint, quantized, found), states)


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize("name", ["w4a16-rtn", "w4a8-quarot", "w4a4-gptq", "w4a16-lorc"])
def test_a_size_budget_is_used_up_and_kept(family: str, name: str, tmp_path: Path) -> None:
    checkpoint = golden(family)
    states = calibration(checkpoint)
    plain = make_recipe(name, checkpoint.spec, QuantOptions(), "fp32")
    least = bits_a_weight(checkpoint.spec, plain)
    losses = []
    for extra in (0.0, 1.0, 2.5):
        options = QuantOptions(mean_bits=least + extra)
        recipe = make_recipe(name, checkpoint.spec, options, "fp32")
        found, loss = allocated(checkpoint, recipe, states, tmp_path / str(extra))
        losses.append(loss)
        took = bits_a_weight(checkpoint.spec, found)
        # no group is more than a sixth of a block: what is left over is less than one group
        largest = 4.2 * 2 * 160 * 64 / (3 * 2 * (64 * 64 + 160 * 64))
        assert least + extra - largest <= took <= least + extra + 1e-9
        assert bool(found.high) == (extra > 0)
    if name != "w4a4-gptq":  # inputs of 4 bits cost a model of random weights more than weights do
        assert losses[2] < losses[0]


def test_an_accuracy_budget_is_met_with_few_groups(tmp_path: Path) -> None:
    checkpoint = golden("llada")
    states = calibration(checkpoint)
    plain = make_recipe("w4a16-rtn", checkpoint.spec, QuantOptions(), "fp32")
    _, worst = allocated(checkpoint, plain, states, tmp_path / "plain")
    options = QuantOptions(budget=worst / 3)
    recipe = make_recipe("w4a16-rtn", checkpoint.spec, options, "fp32")
    found, loss = allocated(checkpoint, recipe, states, tmp_path / "budget")
    assert loss <= worst / 3
    assert 0 < len(found.high) < 4 * checkpoint.spec.layers
    generous = replace(recipe, budget=2 * worst)
    assert not allocated(checkpoint, generous, states, tmp_path / "generous")[0].high


@pytest.mark.parametrize("options", [QuantOptions(mean_bits=3.0), QuantOptions(budget=1e-9)])
def test_a_budget_that_cannot_be_met_is_refused(options: QuantOptions, tmp_path: Path) -> None:
    checkpoint = golden("llada")
    recipe = make_recipe("w4a16-rtn", checkpoint.spec, options, "fp32")
    with pytest.raises(UserError, match="Mixed precision: ") as refused:
        allocated(checkpoint, recipe, calibration(checkpoint), tmp_path)
    assert "--mean-bits" in refused.value.hint


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("w4a16", QuantOptions(mean_bits=5.0, budget=0.1), "Mixed precision within 5.0 bits"),
        ("w8a8", QuantOptions(mean_bits=5.0), "between 4 and 8 bits"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(
    name: str, options: QuantOptions, error: str
) -> None:
    with pytest.raises(UserError, match=error):
        make_recipe(name, golden("llada").spec, options, "fp32")
