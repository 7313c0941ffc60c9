"""Names of recipes, `<bits>[-<method>][+<component> ...]`: what their parts are and stand for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exporter.errors import UserError
from passes.activations.attention import FLOAT
from passes.activations.grid import Granularity


@dataclass(frozen=True)
class Limits:
    """What the gate asks of a bundle: see gate.py."""

    regret: float  # largest mean probability given up at the positions about to be committed
    kl: float  # largest mean KL divergence there, in nats


@dataclass(frozen=True)
class Precision:
    """How wide everything in the blocks is; 16 is float."""

    title: str
    limits: Limits
    weights: int = FLOAT
    activations: int = FLOAT
    operands: tuple[int, int, int, int] = (FLOAT,) * 4  # of attention: q, k, v, p
    default: str = "gptq+tmas+cgq"  # what the method `dllmquant` stands for


BITS: Mapping[str, Precision] = {
    "fp32": Precision("float weights and arithmetic, the reference", Limits(1e-4, 1e-4)),
    "fp16": Precision(
        "weights and activations in fp16, norms and reductions in fp32", Limits(2e-3, 2e-3)
    ),
    "w8a16": Precision(
        "8-bit weights in groups, float activations, 8-bit head", Limits(5e-3, 5e-3), weights=8
    ),
    "w4a16": Precision(
        "4-bit weights in groups, float activations, 8-bit head", Limits(0.03, 0.1), weights=4
    ),
    "w8a8": Precision(
        "8-bit weights a channel, 8-bit activations a token, 8-bit attention operands",
        Limits(0.02, 0.05), 8, 8, (8, 8, 8, 8), "quarot+smooth+tmas+cgq+iaaq",
    ),
    "w4a8": Precision(
        "4-bit weights in groups on 8-bit channels, 8-bit activations a token, 8-bit attention",
        Limits(0.04, 0.15), 4, 8, (8, 8, 8, 8), "quarot+smooth+tmas+cgq+iaaq",
    ),
    "w4a4": Precision(
        "4-bit weights and activations in groups, 4-bit values, 8-bit q, k and p",
        Limits(0.15, 0.6), 4, 4, (8, 8, 4, 8), "quarot+smooth+tmas+cgq+iaaq",
    ),
}  # fmt: skip
METHODS = {
    "dllmquant": "what DLLMQuant is on these bits, see below (the default)",
    "rtn": "round to nearest",
    "gptq": "rounding errors made up for by later columns",
    "quantease": "coordinate descent on the objective of GPTQ",
    "lorc": "GPTQ, and a low-rank correction of what is left",
    "awq": "scales and clipping that protect channels of large input",
    "smoothquant": "activation outliers moved into the weights",
    "omniquant": "learned scales and clipping",
    "quarot": "Hadamard rotations, then GPTQ",
    "duquant": "smoothing, learned block rotations and a zig-zag permutation",
}
ROUND_INPUTS = ("smoothquant", "duquant")  # methods that do nothing where inputs stay float
UNWEIGHTED = ("rtn", "smoothquant", "duquant")  # methods in which all tokens count alike
SMOOTH_ALREADY = ("smoothquant", "duquant", "omniquant")
COMPONENTS = {
    "tmas": "calibrate on states of all phases of decoding (without: drawn evenly)",
    "mcs": "calibrate on finished answers, masked anew at even ratios, without a roll-out's states",
    "clean": "calibrate on finished answers, nothing masked",
    "cgq": "weigh calibration tokens by mask state and certainty",
    "iaaq": "choose the scales of values by what attention makes of them",
    "smooth": "move activation outliers into the weights before all else",
    "token": "activations have a scale a token",
    "group": "activations have a scale a token and group of channels",
    "tensor": "activations have one calibrated scale",
}
STATES = ("tmas", "mcs", "clean")  # components that say where calibration states come from
SCALES: tuple[Granularity, ...] = ("token", "group", "tensor")  # those for activations


def names() -> list[str]:
    """Every recipe name without components, the short ones first."""
    quantized = [bits for bits in BITS if bits.startswith("w")]
    pairs = ((bits, method) for bits in quantized for method in METHODS if _fits(bits, method))
    return [*BITS, *(f"{bits}-{method}" for bits, method in pairs)]


def _fits(bits: str, method: str) -> bool:
    return BITS[bits].activations != FLOAT or method not in ROUND_INPUTS


def parse(name: str) -> tuple[str, str, tuple[str, ...]]:
    """Bits, method and components of a recipe's name, `dllmquant` spelled out. Or UserError."""
    head, *components = name.split("+")
    bits, _, method = head.partition("-")
    if bits not in BITS:
        raise UserError(f"Unknown recipe `{name}`", f"Bits that are known: {', '.join(BITS)}")
    if bits.startswith("fp") and name != bits:
        raise UserError(f"Unknown recipe `{name}`: floats take no method", f"Use {bits}")
    method = method or "dllmquant"
    if method not in METHODS:
        raise UserError(f"Unknown recipe `{name}`", f"Methods: {', '.join(METHODS)}")
    if not _fits(bits, method):
        raise UserError(
            f"Recipe `{name}`: {method} helps to round activations, which stay float here",
            "Use w8a8, w4a8 or w4a4 with it, or another method",
        )
    if method == "dllmquant":
        method, *own = BITS[bits].default.split("+")
        if any(component in STATES for component in components):
            own = [component for component in own if component not in STATES]
        components = [*own, *(c for c in components if c not in own)]
    unknown = [c for c in components if c not in COMPONENTS]
    if unknown:
        raise UserError(
            f"Unknown component `{unknown[0]}` in recipe `{name}`",
            f"Components: {', '.join(COMPONENTS)}",
        )
    for kind, what in ((STATES, "place for calibration states"), (SCALES, "kind of scales")):
        if len([c for c in components if c in kind]) > 1:
            raise UserError(
                f"Recipe `{name}` has more than one {what}", f"Name one of {', '.join(kind)}"
            )
    _check_useful(name, bits, method, components)
    return bits, method, tuple(c for c in COMPONENTS if c in components)


def full_name(name: str) -> str:
    """`name` with its method spelled out."""
    head, *components = name.split("+")
    return "+".join([head if "-" in head else f"{head}-dllmquant", *components])


def _check_useful(name: str, bits: str, method: str, components: Sequence[str]) -> None:
    """Raises UserError for a component that would change nothing."""
    floats = BITS[bits].activations == FLOAT
    idle = {
        "cgq": f"{method} does not weigh tokens" if method in UNWEIGHTED else "",
        "smooth": "activations stay float" if floats else
        f"{method} smooths already" if method in SMOOTH_ALREADY else "",
    }  # fmt: skip
    if floats and method == "rtn":
        idle |= dict.fromkeys(STATES, "rtn with float activations is not calibrated")
    for component in components:
        if idle.get(component):
            raise UserError(
                f"Recipe `{name}`: {component} would change nothing, {idle[component]}",
                f"Leave +{component} out, or use another method",
            )
