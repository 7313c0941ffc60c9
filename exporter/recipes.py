"""Recipes: from a name such as `w4a16-dllmquant` to the passes that run, in order.

A name is `<bits>[-<method>]`. Passes see plain settings, never a target.
"""

from dataclasses import dataclass
from typing import Literal

from exporter.errors import UserError
from exporter.families import Spec
from passes.base import Block, Pass
from passes.calibrate.cgq import Cgq, VisibleScore
from passes.calibrate.tmas import Tmas
from passes.calibrate.uniform import Uniform
from passes.weights.gptq import Gptq
from passes.weights.rtn import Rtn

Storage = Literal["fp32", "fp16"]
METHODS = {
    "dllmquant": "GPTQ on states drawn by TMAS, tokens weighed by CGQ (the default)",
    "gptq": "GPTQ on states drawn evenly from the trajectory, all tokens equal",
    "rtn": "round to nearest, no calibration",
}
BITS = {
    "fp32": "float weights and arithmetic, the reference",
    "fp16": "weights and activations in fp16, norms and reductions in fp32",
    "w4a16": "4-bit weights in groups, float activations, 8-bit head",
    "w8a16": "8-bit weights in groups, float activations, 8-bit head",
}
GROUPS = (128, 64, 32)  # inputs a scale, best first: fewer scales are smaller and faster


@dataclass(frozen=True)
class Limits:
    """What the gate asks of a bundle: see gate.py."""

    regret: float  # largest mean probability given up at the positions about to be committed
    kl: float  # largest mean KL divergence there, in nats


@dataclass(frozen=True)
class QuantOptions:
    """What a user can set about quantization."""

    group: int | None = None  # None: the largest of GROUPS that divides every linear
    act_order: bool = False
    damping: float = 0.01
    clip: bool = False
    samples: int = 128
    bins: Literal["mask-ratio", "trajectory"] = "mask-ratio"
    visible_score: VisibleScore = "model"
    head_bits: Literal[8, 16] = 8
    embed_bits: Literal[8, 16] = 16
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """What is done to a model's weights, ready to run."""

    name: str
    compute: Storage  # type of activations and of the arithmetic
    storage: Storage  # of embeddings that stay float
    bits: int | None = None  # of the linears in the blocks; None: float
    group: int = 0  # inputs of those that share a scale
    head_bits: Literal[8, 16] = 16  # 16: float, as `compute`
    embed_bits: Literal[8, 16] = 16
    head_group: int = 0
    draw: Tmas | Uniform | None = None  # which states of the trajectory
    weigh: Cgq | None = None  # what each token weighs
    blocks: tuple[Pass[Block], ...] = ()  # run over every block, in order
    limits: Limits = Limits(1e-4, 1e-4)


def names() -> list[str]:
    """Every recipe name, the short ones first."""
    quantized = [bits for bits in BITS if bits.startswith("w")]
    return [*BITS, *(f"{bits}-{method}" for bits in quantized for method in METHODS)]


def make_recipe(name: str, spec: Spec, options: QuantOptions, compute: Storage) -> Recipe:
    """The recipe `name` for a model of `spec`; `compute` is what float arithmetic is fast in.

    Raises UserError on an unknown name or a group that does not fit.
    """
    if name not in names():
        raise UserError(f"Unknown recipe `{name}`", f"Known: {', '.join(names())}")
    bits, _, method = name.partition("-")
    if bits == "fp32":
        return Recipe(name, "fp32", "fp32")
    if bits == "fp16":
        return Recipe(name, "fp16", "fp16", limits=Limits(2e-3, 2e-3))
    method = method or "dllmquant"
    width, group = int(bits[1]), _group(spec, options.group)
    solve: Rtn | Gptq = Gptq(
        width, group, act_order=options.act_order, damping=options.damping, clip=options.clip
    )
    draw: Tmas | Uniform | None = Tmas(options.samples, bins=options.bins, seed=options.seed)
    weigh: Cgq | None = Cgq(visible_score=options.visible_score)
    if method == "gptq":
        draw, weigh = Uniform(options.samples, options.seed), None
    if method == "rtn":
        solve, draw, weigh = Rtn(width, group, options.clip), None, None
    return Recipe(
        name=f"{bits}-{method}",
        compute=compute,
        storage="fp16",
        bits=width,
        group=group,
        head_bits=options.head_bits,
        embed_bits=options.embed_bits,
        head_group=_divisor(spec.width),
        draw=draw,
        weigh=weigh,
        blocks=(solve,),
        limits=Limits(0.03, 0.1) if width == 4 else Limits(5e-3, 5e-3),
    )


def _group(spec: Spec, wanted: int | None) -> int:
    """Inputs that share a scale: `wanted`, or the largest usual group that fits all linears."""
    inputs = sorted({spec.width, spec.heads * spec.head_dim, spec.mlp_width})
    fitting = [g for g in GROUPS if all(width % g == 0 for width in inputs)]
    if wanted is None:
        return fitting[0] if fitting else GROUPS[-1]  # the last group of a linear is then shorter
    if wanted not in GROUPS or wanted not in fitting:
        known = ", ".join(map(str, fitting)) or "none"
        raise UserError(
            f"Group {wanted} does not fit linears with {inputs} inputs",
            f"Groups that fit: {known}; leave --group out to let dqexport choose",
        )
    return wanted


def _divisor(width: int) -> int:
    return next((g for g in GROUPS if width % g == 0), GROUPS[-1])
