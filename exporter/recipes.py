"""Recipes: from a name such as `w4a4-quarot+tmas+cgq` to the passes that run, in order.

A name is `<bits>[-<method>][+<component> ...]`. Passes see plain settings, never a target.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from exporter.errors import UserError
from exporter.families import Spec
from exporter.quant_options import QuantOptions
from exporter.recipe_names import BITS, SCALES, Limits, Precision, full_name, parse
from passes.activations.attention import FLOAT, AttentionGrid
from passes.activations.choose_attention import ChooseAttention
from passes.activations.grid import ActivationGrid
from passes.activations.ia_aq import IaAq
from passes.activations.key_mean import KeyMean
from passes.activations.static import StaticScales
from passes.base import Block, LinearGroup, Pass
from passes.calibrate.cgq import Cgq
from passes.calibrate.clean import Clean
from passes.calibrate.mcs import Mcs
from passes.calibrate.tmas import Tmas
from passes.calibrate.uniform import Uniform
from passes.numerics import WeightGrid
from passes.transforms.awq import Awq
from passes.transforms.duquant import DuQuant
from passes.transforms.omniquant import OmniQuant, OmniScale
from passes.transforms.quarot import (
    ResidualRotation,
    RotateDown,
    RotateHeads,
    RotateQueriesKeys,
)
from passes.transforms.smooth import SmoothQuant
from passes.weights.gptq import Gptq
from passes.weights.lorc import Lorc
from passes.weights.quantease import QuantEase
from passes.weights.rtn import Rtn

Storage = Literal["fp32", "fp16"]
Draw = Tmas | Uniform | Mcs | Clean
GROUPS = (128, 64, 32)  # inputs a scale, best first: fewer scales are smaller and faster


HEADROOM = 1.5  # of static 8-bit values: steps are cheap there, clipped strangers are not
CLIP_THEMSELVES = ("awq", "omniquant")


@dataclass(frozen=True)
class Recipe:
    """What is done to a model's weights, ready to run."""

    name: str
    compute: Storage  # type of activations and of the arithmetic
    storage: Storage  # of embeddings that stay float
    weights: WeightGrid | None = None  # of the linears in the blocks; None: float
    activation: ActivationGrid | None = None  # of their inputs; None: float
    attention: AttentionGrid | None = None  # None: float
    kv_bits: int = FLOAT  # of keys and values that are kept between calls: 4, 8, or 16: float
    high: frozenset[tuple[int, str]] = frozenset()  # (block, group) on 8-bit weights all the same
    mean_bits: float | None = None  # budget of mixed precision: see allocate.py
    budget: float | None = None
    head_bits: int = 16  # 4, 8, or 16: float, as `compute`
    embed_bits: int = 16
    head_group: int = 0
    rotation: ResidualRotation | None = None  # of the residual stream, before all passes
    draw: Draw | None = None  # which states of the trajectory
    weigh: Cgq | None = None  # what each token weighs
    blocks: tuple[Pass[Block], ...] = ()  # run over every block, in order
    limits: Limits = BITS["fp32"].limits

    @property
    def keeps_codes(self) -> bool:
        """Whether caches hold the codes of keys and values that attention computes with."""
        return keeps_codes(self.attention, self.kv_bits)

    def on_grids(self, block: int, group: LinearGroup) -> LinearGroup:
        """`group` of the given block, with the grids that its weights and inputs go on."""
        grid = self.weights
        if grid is not None and (block, group.name) in self.high:
            grid = replace(grid, bits=8, levels=1)
            if self.weights is not None and self.weights.levels == 2:
                grid = replace(grid, group=None)  # integers are summed over whole rows
        return replace(group, grid=grid, activation=self.activation)


def keeps_codes(grid: AttentionGrid | None, kv_bits: int) -> bool:
    """The rule: caches of fewer bits hold codes of attention, where attention is all integers.

    Values have static scales then (IaAq), and the mean key is calibrated (KeyMean).
    """
    if grid is None or kv_bits == FLOAT or grid.p_scale != "row":
        return False
    return FLOAT not in (grid.q_bits, grid.k_bits, grid.v_bits, grid.p_bits)


def make_recipe(name: str, spec: Spec, options: QuantOptions, compute: Storage) -> Recipe:
    """The recipe `name` for a model of `spec`; `compute` is what float arithmetic is fast in.

    Raises UserError on an unknown name or settings that do not fit.
    """
    bits, method, components = parse(name)
    precision = BITS[bits]
    if options.v_bits == FLOAT and "iaaq" not in name:
        components = tuple(c for c in components if c != "iaaq")  # implied, and now without a use
    options = _with_scales(name, components, options)
    for what, width, known in (
        ("head", options.head_bits, (4, 8, 16)), ("embed", options.embed_bits, (8, 16)),
        ("kv", options.kv_bits, (4, 8, 16)),
    ):  # fmt: skip
        if width not in known:
            choices = " or ".join(f"--{what}-bits {bits}" for bits in known)
            raise UserError(f"--{what}-bits {width} is not possible", f"Use {choices}")
    if bits in ("fp32", "fp16"):
        storage: Storage = "fp32" if bits == "fp32" else "fp16"
        return Recipe(bits, storage, storage, kv_bits=options.kv_bits, limits=precision.limits)
    activation = _activation(spec, precision, options)
    attention = _attention(precision, options)
    passes = _passes(method, components, activation, attention, options)
    _check_budgets(precision, options)
    mixed = options.mean_bits is not None or options.budget is not None
    calibrated = method != "rtn" or len(passes) > 1 or mixed
    draw = _draw(components, options) if calibrated else None
    return Recipe(
        name=full_name(name),
        compute=compute,
        storage="fp16",
        weights=_weights(spec, precision, method, activation, options),
        activation=activation,
        attention=attention,
        kv_bits=options.kv_bits,
        mean_bits=options.mean_bits,
        budget=options.budget,
        head_bits=options.head_bits,
        embed_bits=options.embed_bits,
        head_group=_divisor(spec.width),
        rotation=_rotation(method, spec, options),
        draw=draw,
        weigh=Cgq(visible_score=options.visible_score) if "cgq" in components else None,
        blocks=passes,
        limits=precision.limits,
    )


def _with_scales(name: str, components: tuple[str, ...], options: QuantOptions) -> QuantOptions:
    """The options, with the scales of activations that the recipe's name asks for."""
    for kind in SCALES:
        if kind in components:
            if options.activation not in (None, kind):
                raise UserError(
                    f"Recipe `{name}` with --activation {options.activation}", "Give one of both"
                )
            return replace(options, activation=kind)
    return options


def _passes(
    method: str,
    components: tuple[str, ...],
    activation: ActivationGrid | None,
    attention: AttentionGrid | None,
    options: QuantOptions,
) -> tuple[Pass[Block], ...]:
    """Function-preserving transforms, then grids of activations, then weights."""
    gptq = Gptq(act_order=options.act_order, damping=options.damping)
    seed = options.rotation_seed
    transforms: Mapping[str, tuple[Pass[Block], ...]] = {
        "awq": (Awq(),),
        "smoothquant": (SmoothQuant(),),
        "quarot": (RotateHeads(), RotateDown(), RotateQueriesKeys()),
        "duquant": (SmoothQuant(), DuQuant(seed=seed)),  # smoothing first, as its authors do
        "omniquant": (SmoothQuant(), OmniScale()),  # smoothing is what its scales start from
    }
    solvers: Mapping[str, Pass[Block]] = {
        "gptq": gptq,
        "quarot": gptq,
        "quantease": QuantEase(damping=options.damping),
        "lorc": Lorc(gptq, options.rank),
        "omniquant": OmniQuant(),
    }
    grids: list[Pass[Block]] = []
    if activation is not None and activation.granularity == "tensor":
        grids.append(StaticScales())
    if keeps_codes(attention, options.kv_bits):
        grids.append(KeyMean())
    if attention is not None and attention.v_bits != FLOAT:
        alphas = options.alphas if "iaaq" in components else "minmax"
        grids.append(IaAq(alphas, headroom=HEADROOM if attention.v_bits == 8 else 1.0))
    elif "iaaq" in components:
        raise UserError(
            "Component `iaaq` chooses the scales of values, which stay float here",
            "Give --v-bits 8 or 4, or a recipe with quantized attention, such as w4a8",
        )
    if options.attention_limit is not None:
        grids.append(_choice(attention, options.attention_limit))
    smooth = (SmoothQuant(),) if "smooth" in components else ()
    # grids see the channels that run, so they come behind the transforms
    return (*smooth, *transforms.get(method, ()), *grids, solvers.get(method, Rtn()))


def _choice(attention: AttentionGrid | None, limit: float) -> ChooseAttention:
    if attention is None or FLOAT in (attention.v_bits, attention.p_bits):
        raise UserError(
            f"--attention-limit {limit:g} chooses between integers and floats in attention, "
            "of which this recipe has floats alone",
            "Use a recipe with quantized attention, such as w4a8, or leave --attention-limit out",
        )
    if not limit > 0:
        raise UserError(
            f"--attention-limit {limit:g} is not possible", "Use a share above 0, such as 0.01"
        )
    return ChooseAttention(limit)


def _check_budgets(precision: Precision, options: QuantOptions) -> None:
    mean_bits, budget = options.mean_bits, options.budget
    if mean_bits is None and budget is None:
        return
    if mean_bits is not None and budget is not None:
        raise UserError(
            f"Mixed precision within {mean_bits} bits and within {budget} nats",
            "Give one of --mean-bits and --budget",
        )
    if precision.weights != 4:
        raise UserError(
            f"Mixed precision is between 4 and 8 bits, the recipe has {precision.weights}",
            "Use w4a16, w4a8 or w4a4 with it",
        )


def _rotation(method: str, spec: Spec, options: QuantOptions) -> ResidualRotation | None:
    return ResidualRotation(spec.width, options.rotation_seed) if method == "quarot" else None


def _draw(components: tuple[str, ...], options: QuantOptions) -> Draw:
    if "tmas" in components:
        return Tmas(options.samples, bins=options.bins, seed=options.seed)
    if "mcs" in components:
        return Mcs(options.samples, seed=options.seed)
    if "clean" in components:
        return Clean(options.samples, seed=options.seed)
    return Uniform(options.samples, options.seed)


def _weights(
    spec: Spec,
    precision: Precision,
    method: str,
    activation: ActivationGrid | None,
    options: QuantOptions,
) -> WeightGrid:
    """Groups where activations are float or grouped too, else what integers are summed over.

    Wide groups are clipped where that pays, but for methods that have a clipping of their own.
    """
    group = _group(spec, options.group)
    if activation is None or activation.granularity == "group":
        return WeightGrid(precision.weights, group, clip=bool(options.clip))
    clip = method not in CLIP_THEMSELVES if options.clip is None else options.clip
    if precision.weights == 8:
        return WeightGrid(8, None, clip=clip)
    return WeightGrid(precision.weights, group, levels=2, clip=clip)


def _activation(spec: Spec, precision: Precision, options: QuantOptions) -> ActivationGrid | None:
    if precision.activations == FLOAT:
        if options.activation is not None:
            raise UserError(
                f"--activation {options.activation} with activations that stay float",
                "Use a recipe such as w8a8, w4a8 or w4a4",
            )
        return None
    kind = options.activation or ("group" if precision.activations == 4 else "token")
    if kind != "group":
        return ActivationGrid(precision.activations, kind)
    group = _group(spec, options.group)
    ragged = [width for width in _inputs(spec) if width % group]
    if ragged:
        raise UserError(
            f"Activations in groups of {group} do not divide {ragged[0]} channels",
            "Use --activation token",
        )
    return ActivationGrid(precision.activations, "group", group)


def _attention(precision: Precision, options: QuantOptions) -> AttentionGrid | None:
    asked = (options.q_bits, options.k_bits, options.v_bits, options.p_bits)
    bits = [
        own if given is None else given
        for own, given in zip(precision.operands, asked, strict=True)
    ]
    for name, width in zip("qkvp", bits, strict=True):
        if width not in (4, 8, FLOAT):
            raise UserError(f"--{name}-bits {width} is not possible", "Use 4, 8 or 16 (float)")
    q, k, v, p = bits
    grid = AttentionGrid(q, k, v, p, p_scale=options.p_scale)
    if not keeps_codes(grid, options.kv_bits):
        return None if grid.is_float else grid
    for name, given in (("k", options.k_bits), ("v", options.v_bits)):
        if given not in (None, options.kv_bits):
            raise UserError(
                f"--{name}-bits {given} with a cache that keeps codes of {options.kv_bits} bits",
                f"Leave --{name}-bits out, or give --kv-bits {given}",
            )
    return replace(grid, k_bits=options.kv_bits, v_bits=options.kv_bits)


def _inputs(spec: Spec) -> list[int]:
    dense = spec.experts is None or not all(spec.experts.blocks)
    widths = {spec.width, spec.heads * spec.head_dim} | ({spec.mlp_width} if dense else set())
    if spec.experts is not None:
        widths |= {spec.experts.width, spec.experts.shared_width} - {0}
    return sorted(widths)


def _group(spec: Spec, wanted: int | None) -> int:
    """Inputs that share a scale: `wanted`, or the largest usual group that fits all linears."""
    inputs = _inputs(spec)
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
