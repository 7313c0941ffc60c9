"""Mixed precision: which groups of linears go to 8 bits, within a size or an accuracy budget.

Sensitivities are measured in one sweep over the float model. A size budget is then a matter of
sorting. Under an accuracy budget the whole model is quantized a few times, by bisection over how
many of the most sensitive groups have 8 bits.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from exporter.errors import UserError
from exporter.families import block_shapes
from exporter.float_session import FloatModel
from exporter.linear_groups import block_groups
from exporter.planner import stored_bits
from exporter.progress import Progress
from exporter.quantize import make_batches, open_block, quantize
from exporter.recipes import Recipe
from exporter.simulate import simulated
from exporter.tensor_files import write_atomically
from exporter.work import Work, to_json
from passes.base import LinearGroup, Team
from passes.calibrate.states import CalibrationSet
from passes.weights.allocation import Item, by_sensitivity, within_accuracy, within_size
from passes.weights.sensitivity import Sensitivity

STATES = 16  # that the whole model is compared with float on


@torch.no_grad()
def allocate(
    floats: FloatModel,
    model: FloatModel,
    digest: str,
    calibration: CalibrationSet | None,
    recipe: Recipe,
    team: Team,
    work: Work,
    progress: Progress,
) -> Recipe:
    """`recipe` with the groups that its budget gives 8 bits; as it is where it has none.

    `floats` is the plain model, `model` the same in the basis that is quantized. Raises UserError
    where the budget cannot be met.
    """
    if recipe.mean_bits is None and recipe.budget is None:
        return recipe
    assert calibration is not None and recipe.weights is not None
    losses = _losses(model, digest, calibration, recipe, team, work, progress)
    items = [
        _item(model, recipe, index, group, losses[f"{index}/{group.name}"])
        for index in range(model.spec.layers)
        for group in block_groups(model.spec, index)
    ]

    def measure(chosen: Sequence[str]) -> float:
        tried = replace(recipe, high=_places(chosen))
        quantized = quantize(model, digest, calibration, tried, team, work, progress)
        other = simulated(floats.checkpoint, quantized, tried, model.device)
        return team.collect(divergence(floats, other, calibration))[0]  # one number for all

    try:
        if recipe.mean_bits is not None:
            chosen = within_size(items, recipe.mean_bits)
        else:
            assert recipe.budget is not None
            order = [item.name for item in by_sensitivity(items)]
            chosen = within_accuracy(order, measure, recipe.budget)
    except ValueError as error:
        raise UserError(
            f"Mixed precision: {error}", "Give a larger --mean-bits or --budget"
        ) from None
    return replace(recipe, high=_places(chosen))


def divergence(floats: FloatModel, other: FloatModel, calibration: CalibrationSet) -> float:
    """Mean KL divergence of `other` from float, in nats, at masked positions of some states."""
    total, count = 0.0, 0
    masked = [state for state in calibration.states if state.is_mask.any()][:STATES]
    for state in masked:
        ids, valid = state.ids[None], state.valid[None]
        rows = state.is_mask.roll(-1) if floats.spec.shift else state.is_mask
        p, q = (m.logits(ids, valid)[0][rows].double().log_softmax(-1) for m in (floats, other))
        total += float((p.exp() * (p - q)).sum())
        count += int(rows.sum())
    return total / max(count, 1)


def _losses(
    model: FloatModel,
    digest: str,
    calibration: CalibrationSet,
    recipe: Recipe,
    team: Team,
    work: Work,
    progress: Progress,
) -> dict[str, float]:
    """Loss of each group of each block, "block/group", when it alone is rounded."""
    assert recipe.weights is not None
    stage = work.stage("sensitivity", digest, calibration.provenance, recipe.weights,
                       recipe.rotation, recipe.weigh)  # fmt: skip
    file = stage / "losses.json"
    if all(team.collect(file.is_file())):
        return dict(json.loads(file.read_text()))
    measure, losses = Sensitivity(recipe.weights), dict[str, float]()
    batches = make_batches(model, calibration, team)
    with progress.stage("sensitivity", model.spec.layers) as step:
        for index in range(model.spec.layers):
            plain = replace(recipe, weights=None, activation=None, attention=None)
            block = open_block(model, index, batches, plain, team)
            losses |= {f"{index}/{name}": loss for name, loss in measure(block).items()}
            block.advance()
            step()
    if team.rank == 0:
        write_atomically(file, [to_json(losses)])
    return losses


def _item(model: FloatModel, recipe: Recipe, index: int, group: LinearGroup, loss: float) -> Item:
    name = f"{index}/{group.name}"
    shapes = block_shapes(model.spec, index)
    wide = replace(recipe, high=_places([name]))
    sizes = {x: shapes[x][0] * shapes[x][1] for x in group.linears}
    count = sum(sizes.values())
    low, high = (
        sum(sizes[x] * sum(stored_bits(r, index, group, shapes[x])) for x in sizes) / count
        for r in (recipe, wide)
    )
    return Item(name, count, low, high, loss)


def _places(names: Sequence[str]) -> frozenset[tuple[int, str]]:
    parts = (name.partition("/") for name in names)
    return frozenset((int(index), group) for index, _, group in parts)
