"""Groups in order, rows shared out, errors as they are: whatever the solver."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from passes.base import Block, LinearGroup, Stats, Team
from passes.calibrate.cgq import Cgq
from passes.calibrate.states import CalibrationSet, State
from passes.numerics import QuantizedLinear, WeightGrid
from passes.weights.gptq import Gptq, solve
from passes.weights.hessian import accumulate_hessian, factorize, output_error
from passes.weights.layerwise import collect
from passes.weights.quantease import QuantEase
from passes.weights.rtn import round_to_nearest
from tests.thread_team import run_as_team
from tests.toy_block import ToyBlock

SOLVERS = [Gptq(), Gptq(act_order=True), QuantEase(3, start="rtn"), QuantEase(3, start="gptq")]
TWO_LEVELS = WeightGrid(4, 16, levels=2)
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")


def hessian_over(block: Block, group: LinearGroup) -> Tensor:
    """The Hessian of the inputs that the block gives a group now."""
    return collect(block, group, block.weight(group.linears[0]))[0]


def same(a: QuantizedLinear, b: QuantizedLinear) -> bool:
    return torch.equal(a.codes, b.codes) and torch.equal(a.scales, b.scales)


def test_the_hessian_is_that_of_all_tokens(toy_block: type[ToyBlock]) -> None:
    block = toy_block(weigh=True)
    found, tokens = collect(block, block.groups[3], block.weight("down"))
    expected = torch.zeros(48, 48)
    for x, w in block.inputs(block.groups[3]):
        accumulate_hessian(expected, x, w)
    assert torch.equal(found, expected)
    assert tokens == 150


def test_later_groups_see_the_quantized_earlier_ones(toy_block: type[ToyBlock]) -> None:
    replaced: dict[str, QuantizedLinear] = {}
    block = toy_block(replaced)
    weight, group = block.weight("down"), block.groups[3]
    stats = Gptq()(block)
    assert group.grid is not None
    factor = factorize(hessian_over(block, group), 0.01, act_order=False)
    assert same(replaced["down"], solve(weight, factor, group.grid))
    early = factorize(hessian_over(toy_block(), group), 0.01, act_order=False)
    assert not same(replaced["down"], solve(weight, early, group.grid))
    assert (stats["linears"], stats["tokens"]) == (7, 150)
    assert (stats["dead_columns"], stats["damping_retries"]) == (0, 0)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("grid", [WeightGrid(4, 16), TWO_LEVELS], ids=str)
def test_stats_are_the_output_errors_of_the_linears(
    toy_block: type[ToyBlock], solver: Gptq | QuantEase, grid: WeightGrid
) -> None:
    replaced: dict[str, QuantizedLinear] = {}
    before, block = toy_block(), toy_block(replaced, grid=grid)
    stats = solver(block)
    errors, rtn_errors = [], []
    for group in block.groups:
        hessian = hessian_over(block, group)
        for name in group.linears:
            weight = before.weight(name)
            errors.append(output_error(weight, replaced[name].dequantize(), hessian))
            nearest = round_to_nearest(weight, grid).dequantize()
            rtn_errors.append(output_error(weight, nearest, hessian))
    assert stats["error"] == sum(errors) / 7
    assert stats["worst_error"] == max(errors)
    assert stats["rtn_error"] == sum(rtn_errors) / 7
    assert stats["error"] < stats["rtn_error"]


def test_groups_without_a_grid_stay_float(toy_block: type[ToyBlock]) -> None:
    replaced: dict[str, QuantizedLinear] = {}
    block = toy_block(replaced)
    block.groups = tuple(
        replace(group, grid=None) if "mlp" in group.name else group for group in block.groups
    )
    stats = Gptq()(block)
    assert list(replaced) == ["q", "k", "v", "o"]
    assert stats["linears"] == 4


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_padding_never_matters(toy_block: type[ToyBlock], solver: Gptq | QuantEase) -> None:
    clean: dict[str, QuantizedLinear] = {}
    dirty: dict[str, QuantizedLinear] = {}
    solver(toy_block(clean))
    solver(toy_block(dirty, padding=float("nan")))
    assert all(same(clean[name], dirty[name]) for name in LINEARS)


def test_token_weights_of_one_give_the_codes_of_plain_gptq(
    toy_block: type[ToyBlock],
) -> None:
    """CGQ with equal weights for all tokens, whatever they are, is no CGQ at all: to the bit."""
    plain: dict[str, QuantizedLinear] = {}
    weighed: dict[str, QuantizedLinear] = {}
    Gptq()(toy_block(plain))
    block = toy_block(weighed)
    block.batches = [replace(batch, weights=equal_weights(batch.valid)) for batch in block.batches]
    Gptq()(block)
    assert all(same(plain[name], weighed[name]) for name in LINEARS)


def equal_weights(valid: Tensor) -> Tensor:
    """Token weights (B, S) of CGQ for states (B, S) whose tokens are all alike: visible, s = 0."""
    none = torch.zeros_like(valid)
    states = [
        State(row, none[0], row, prompt=0, block=0, step=0, mask_ratio=0.0, score=row.float())
        for row in valid
    ]
    calibration = CalibrationSet(states, provenance="", counts={})
    Cgq(visible=0.7, visible_score="zero")(calibration)
    return torch.stack(calibration.weights)


@pytest.mark.parametrize("solver", [SOLVERS[0], SOLVERS[3]], ids=repr)
@pytest.mark.parametrize("grid", [WeightGrid(4, 16), TWO_LEVELS], ids=str)
def test_a_team_solves_as_one_process(
    toy_block: type[ToyBlock], solver: Gptq | QuantEase, grid: WeightGrid
) -> None:
    def work(team: Team) -> tuple[dict[str, QuantizedLinear], Stats]:
        replaced: dict[str, QuantizedLinear] = {}
        return replaced, solver(toy_block(replaced, grid=grid, team=team))

    (first, stats), (second, others), *_ = run_as_team(3, work)
    assert stats == others
    assert all(same(first[name], second[name]) for name in LINEARS)
    alone: dict[str, QuantizedLinear] = {}
    expected = solver(toy_block(alone, grid=grid))
    assert stats["tokens"] == expected["tokens"] == 150
    # Hessians are summed in another order: a code in a hundred or so tips over, and what follows it
    # in its row makes up for that.
    assert stats["error"] == pytest.approx(expected["error"], rel=0.05)
    equal = sum(float((first[n].codes == alone[n].codes).float().mean()) for n in LINEARS) / 7
    assert equal > 0.9
