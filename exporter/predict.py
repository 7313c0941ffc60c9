"""How long a forward pass takes at least, from what it must move and multiply (a roofline).

Williams, Waterman, Patterson, "Roofline", Communications of the ACM 52 (4), 2009: a kind of
operation takes max(bytes / bandwidth, operations / rate). Kinds (linears, attention, head) run one
after the other, so their times add up. The product is a floor, times nothing:

* bytes are those that cannot stay in caches: weights once, keys and values that are kept;
* operations are those of matrix products: a multiply-add is two of them;
* norms, softmax, rotations, corrections, rounding, launches and the loop count for nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from exporter.families import Spec, block_shapes
from exporter.graph_kind import GraphKind
from exporter.linear_groups import expert_number, group_of_each
from exporter.manifest import PredictedForward, Prediction, significant
from exporter.operator_use import OperatorUse
from exporter.planner import cache_bytes, head_bytes, linear_bytes
from exporter.recipes import Recipe
from exporter.runtime.settings import Settings
from passes.activations.attention import FLOAT
from passes.base import LinearGroup
from targets import Target

Arithmetic = Literal["fp16", "int8"]  # of the tensor cores; codes of 4 bits are multiplied as bytes


@dataclass(frozen=True)
class Work:
    """What one kind of operation moves and multiplies in a forward pass."""

    bytes: float
    operations: Mapping[Arithmetic, float]

    def seconds(self, bandwidth: float, rates: Mapping[Arithmetic, float]) -> tuple[float, float]:
        """Least times of memory (bytes a second) and of arithmetic (operations a second)."""
        counted = (count / rates[kind] for kind, count in self.operations.items())
        return self.bytes / bandwidth, sum(counted)


def predict(
    spec: Spec,
    recipe: Recipe,
    target: Target,
    use: OperatorUse | None,
    settings: Settings,
    canvas: int,
) -> Prediction | None:
    """The floors of a whole canvas without a cache, and of one block with one.

    For one sequence, at the longest canvas, with the defaults in `settings`. None where bandwidth
    or rates of the target are not known. fp32 counts at the rate of fp16, which it does not reach.
    """
    if target.bandwidth_gb_s is None or target.tops is None:
        return None
    block, rows = min(settings.block_length, canvas), 2 if settings.cfg_scale > 0 else 1
    bandwidth = target.bandwidth_gb_s * 1e9
    rates = {kind: tops * 1e12 for kind, tops in target.tops.items()}
    forwards = []
    for cached, fed in ((False, canvas), (True, block)):
        kinds = [
            linears(spec, recipe, use, rows * fed),
            attention(spec, recipe, use, rows, fed, canvas, cached),
            head(spec, recipe, rows * block),
        ]
        times = [kind.seconds(bandwidth, rates) for kind in kinds]
        memory = sum(moved for moved, counted in times if moved >= counted)
        seconds = sum(map(max, times))
        forwards.append(
            PredictedForward(
                graph=GraphKind(guided=rows == 2, cached=cached).name,
                tokens=fed,
                canvas=canvas,
                bytes=round(sum(kind.bytes for kind in kinds)),
                operations=_added(kinds),
                milliseconds=significant(1000 * seconds),
                bound="memory" if 2 * memory >= seconds else "arithmetic",
            )
        )
    return Prediction(
        bandwidth_gb_s=target.bandwidth_gb_s,
        tops={str(kind): rate for kind, rate in target.tops.items()},
        power_mode=target.power_mode,
        forwards=forwards,
    )


def linears(spec: Spec, recipe: Recipe, use: OperatorUse | None, tokens: int) -> Work:
    """All linears of the blocks for so many tokens.

    Of experts those are read that even and independent choices would meet: of E experts, k a token,
    E (1 - (1 - k / E)^tokens) on average.
    """
    moved, counted = 0.0, {"fp16": 0.0, "int8": 0.0}
    for index in range(spec.layers):
        shapes = block_shapes(spec, index)
        groups = group_of_each(spec, index)
        for name, shape in shapes.items():
            if name not in groups:
                continue
            met, served = 1.0, float(tokens)
            if expert_number(groups[name]) is not None and spec.experts is not None:
                share = spec.experts.per_token / spec.experts.count
                met, served = 1 - (1 - share) ** tokens, tokens * share
            moved += met * linear_bytes(recipe, index, groups[name], shape)
            kind = arithmetic(recipe, use, index, groups[name])
            counted[kind] += 2 * served * math.prod(shape)
    return Work(moved, {"fp16": counted["fp16"], "int8": counted["int8"]})


def arithmetic(
    recipe: Recipe, use: OperatorUse | None, block: int, group: LinearGroup
) -> Arithmetic:
    """What the products of a linear run in, as `linear_graph` writes them.

    Inputs on a scale a token are multiplied as integers; on a scale a group, and inputs that the
    recipe leaves in float, only by operators of ours, where these know the weight's width and round
    inputs to bytes; all others as floats.
    """
    own = recipe.on_grids(block, group)
    if own.grid is None:
        return "fp16"
    ours = use is not None and own.grid.bits in use.weight_bits
    if own.activation is None:
        return "int8" if ours and use is not None and use.float_bits == 8 else "fp16"
    return "int8" if own.activation.granularity != "group" or ours else "fp16"


def attention(
    spec: Spec,
    recipe: Recipe,
    use: OperatorUse | None,
    rows: int,
    fed: int,
    canvas: int,
    cached: bool,
) -> Work:
    """q kᵀ and p v of `fed` queries on `canvas` keys, in `rows` sequences.

    What is kept is read whole, and written where it was fed. What a mask hides is multiplied all
    the same. Integers where the operator of ours takes the node, which rounds all four operands.
    """
    grid = recipe.attention
    rounded = grid is not None and FLOAT not in (grid.q_bits, grid.k_bits, grid.v_bits, grid.p_bits)
    static = grid is not None and grid.p_scale == "row" and grid.key_mean
    ours = use is not None and use.attention and rounded and static
    moved = rows * (canvas + fed) * cache_bytes(spec, recipe) if cached else 0
    count = 4.0 * spec.layers * rows * fed * canvas * spec.heads * spec.head_dim
    return Work(moved, {"int8" if ours else "fp16": count})


def head(spec: Spec, recipe: Recipe, rows: int) -> Work:
    """The logits of so many rows; products are of floats whatever the head is stored in."""
    return Work(head_bytes(spec, recipe), {"fp16": 2.0 * rows * spec.width * spec.vocab_size})


def _added(kinds: list[Work]) -> dict[str, int]:
    """Operations by arithmetic, over all kinds."""
    names: tuple[Arithmetic, ...] = ("fp16", "int8")
    sums = {name: sum(kind.operations.get(name, 0.0) for kind in kinds) for name in names}
    return {name: round(count) for name, count in sums.items() if count}
